"""What an attack that does not let fooled samples leave at once relies on, as on devices where looking costs a wait."""

import torch
from test_gradient import INDEX, Net, images

from robustfg.attacks import Engine, Linf, Margin
from robustfg.attacks.base import Task
from robustfg.attacks.victim import Victim


def victim_of(run, clean, label, **options):
    task = Task.of(clean, label, INDEX, draw=0, logits=None)
    return Victim(run, task, threat=Linf(epsilon=1), decision=Margin(), **options)


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
        victim = victim_of(run, clean, label)
        for image in (far, images(seed=8), images(seed=9), images(seed=10)):
            victim.look(image)
        found, margin, first, forwards, *_ = victim.results()
    assert torch.equal(found[fooled], far[fooled])
    assert (margin[fooled] < 0).all()
    assert (first[fooled] == 0).all()
    assert forwards.tolist() == [4] * 6


def test_of_those_not_fooled_the_image_with_the_smallest_margin_is_kept():
    model, clean, label, far, _fooled = mixed()
    nearer, seen = clean + 0.01 * (far - clean), []
    with Engine().running(model, clean) as run:
        victim = victim_of(run, clean, label)
        for image in (nearer, clean, nearer):
            seen.append(victim.look(image)[1])
        found, margin, *_ = victim.results()
    least = torch.minimum(seen[0], seen[1])
    assert torch.allclose(margin, least.to(margin.dtype))
    for sample in range(6):
        expected = nearer if seen[0][sample] < seen[1][sample] else clean
        assert torch.equal(found[sample], expected[sample])


def test_clean_logits_are_handed_on_only_if_they_are_those_of_all_samples():
    model, clean, label, _, fooled = mixed()
    with Engine().running(model, clean) as run:
        whole, part = victim_of(run, clean, label), victim_of(run, clean, label)
        part.keep(~fooled)
        assert torch.allclose(whole.logits, model(clean))
        assert torch.allclose(part.logits, model(clean[~fooled]))
    assert torch.equal(whole.asked, whole.logits)
    assert part.asked is None


def test_several_images_of_a_sample_count_apart_and_the_worst_is_kept():
    model, clean, label, far, _fooled = mixed()
    of = torch.tensor([0, 2, 2, 5, 2, 0])
    batch = torch.stack([clean[0], clean[2], far[2], far[5], images(seed=4)[2], far[0]])
    with Engine().running(model, clean) as run:
        victim = victim_of(run, clean, label)
        _, margin = victim.look(batch, of)
        found, _, _, forwards, backwards, _ = victim.results()
    assert forwards.tolist() == [2, 0, 3, 0, 0, 1]
    assert backwards.tolist() == [0] * 6
    for sample in (0, 2, 5):
        own = (of == sample).nonzero().flatten()
        assert torch.equal(found[sample], batch[own[margin[own].argmin()]])
    assert torch.equal(found[1], clean[1])


def test_the_first_mistake_is_counted_right_among_passes_that_decide_nothing():
    model, clean, label, far, fooled = mixed()
    with Engine().running(model, clean) as run:
        victim = victim_of(run, clean, label, stay=True)
        victim.slope(clean, Margin())
        victim.slope(far, Margin())
        for _ in range(3):  # as Nesterov's images ahead
            victim.slope(far, Margin(), seen_as=lambda image: image)
        victim.slope(far, Margin())
        victim.look(clean)
        _, _, first, forwards, *_ = victim.results()
    assert first.tolist() == [1 if won else -1 for won in fooled]
    assert forwards.tolist() == [7] * 6
