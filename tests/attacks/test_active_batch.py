"""What a batch keeps and counts while fooled samples are still in it, as on devices where dropping costs a wait."""

import pytest
import torch
from test_gradient import INDEX, Net, images

from robustfg.attacks import Engine, Linf, Margin
from robustfg.attacks.batch.active_batch import ActiveBatch, SearchOptions
from robustfg.attacks.batch.task import Task


def active_batch_of(run, clean, label, **options):
    task = Task.of(clean, label, INDEX, draw=0, logits=None)
    return ActiveBatch(run, task, threat=Linf(epsilon=1), decision=Margin(), **options)


def mixed():
    """A model with its images, and farther images of which some fool it."""
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    far = images(seed=3)
    fooled = model(far).argmax(1) != label
    assert 0 < fooled.sum() < 6
    return model, clean, label, far, fooled


def test_the_first_image_that_fools_is_kept_whatever_comes_after():
    model, clean, label, far, fooled = mixed()
    with Engine().running(model, clean) as run:
        batch = active_batch_of(run, clean, label)
        for image in (far, images(seed=8), images(seed=9), images(seed=10)):
            batch.evaluate(image)
        found = batch.results()
    assert torch.equal(found.image[fooled], far[fooled])
    assert (found.margin[fooled] < 0).all()
    assert (found.first_success[fooled] == 0).all()
    assert found.forwards.tolist() == [4] * 6


def test_of_those_not_fooled_the_image_with_the_smallest_margin_is_kept():
    model, clean, label, far, _fooled = mixed()
    nearer, seen = clean + 0.01 * (far - clean), []
    with Engine().running(model, clean) as run:
        batch = active_batch_of(run, clean, label)
        for image in (nearer, clean, nearer):
            seen.append(batch.evaluate(image)[1])
        found = batch.results()
    least = torch.minimum(seen[0], seen[1])
    assert torch.allclose(found.margin, least.to(found.margin.dtype))
    for sample in range(6):
        expected = nearer if seen[0][sample] < seen[1][sample] else clean
        assert torch.equal(found.image[sample], expected[sample])


def test_clean_logits_are_handed_on_only_if_they_are_those_of_all_samples():
    model, clean, label, _, fooled = mixed()
    with Engine().running(model, clean) as run:
        whole, part = active_batch_of(run, clean, label), active_batch_of(run, clean, label)
        part.select(~fooled)
        assert torch.allclose(whole.logits, model(clean))
        assert torch.allclose(part.logits, model(clean[~fooled]))
        assert torch.equal(whole.results().logits, whole.logits)
        assert part.results().logits is None


def test_several_images_of_a_sample_count_apart_and_the_worst_is_kept():
    model, clean, label, far, _fooled = mixed()
    of = torch.tensor([0, 2, 2, 5, 2, 0])
    asked = torch.stack([clean[0], clean[2], far[2], far[5], images(seed=4)[2], far[0]])
    with Engine().running(model, clean) as run:
        batch = active_batch_of(run, clean, label)
        _, margin = batch.evaluate(asked, of)
        found = batch.results()
    assert found.forwards.tolist() == [2, 0, 3, 0, 0, 1]
    assert found.backwards.tolist() == [0] * 6
    for sample in (0, 2, 5):
        own = (of == sample).nonzero().flatten()
        assert torch.equal(found.image[sample], asked[own[margin[own].argmin()]])
    assert torch.equal(found.image[1], clean[1])


def test_the_first_success_is_counted_right_among_passes_that_decide_nothing():
    model, clean, label, far, fooled = mixed()
    with Engine().running(model, clean) as run:
        batch = active_batch_of(run, clean, label, options=SearchOptions(keep_fooled=True))
        batch.gradient(clean, Margin())
        batch.gradient(far, Margin())
        for _ in range(3):  # as Nesterov's images ahead
            batch.gradient(far, Margin(), seen_as=lambda image: image)
        batch.gradient(far, Margin())
        batch.evaluate(clean)
        found = batch.results()
    assert found.first_success.tolist() == [1 if won else -1 for won in fooled]
    assert found.forwards.tolist() == [7] * 6


def test_the_result_of_a_sample_that_is_still_to_be_dropped_is_final(monkeypatch):
    monkeypatch.setattr("robustfg.attacks.batch.active_batch.steps_between_drops", lambda device: 3)
    model, clean, label, far, fooled = mixed()
    with Engine().running(model, clean) as run:
        batch = active_batch_of(run, clean, label)
        batch.evaluate(far)
        batch.drop_fooled()
        batch.set_result(clean)
        found = batch.results()
    assert torch.equal(found.image, torch.where(fooled[:, None, None, None], far, clean))
    assert torch.equal(found.margin.isnan(), ~fooled)


@pytest.mark.parametrize("period", [1, 3])
def test_samples_are_dropped_every_period_and_nothing_asked_after_their_success_counts(period, monkeypatch):
    monkeypatch.setattr("robustfg.attacks.batch.active_batch.steps_between_drops", lambda device: period)
    model, clean, label, far, fooled = mixed()
    with Engine().running(model, clean) as run:
        batch, sizes = active_batch_of(run, clean, label), []
        for _ in range(4):
            image = far if len(batch) == 6 else far[~fooled]
            batch.gradient(image, Margin())
            _, number = batch.drop_fooled(image, torch.arange(len(batch)))
            sizes.append(len(batch))
            assert len(number) == len(batch) == len(batch.clean) == len(batch.label) == len(batch.index)
        found = batch.results()
    left = int((~fooled).sum())
    assert sizes == ([left] * 4 if period == 1 else [6, 6, left, left])
    assert found.forwards.tolist() == found.backwards.tolist() == [1 if won else 4 for won in fooled]
    assert torch.equal(found.image, far)
    assert torch.equal(found.margin < 0, fooled)
