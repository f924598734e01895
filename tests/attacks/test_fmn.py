import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import INDEX, Linear, Log, Net, images, margin, named

from robustfg.attacks import FMN, L0, L1, L2, Linf
from robustfg.attacks.threats.lp import l1_projection
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric

ZEROS = torch.zeros(6, dtype=torch.int64)
BEYOND = {Linf: 1, L2: 1000, L1: 1000, L0: 1000}
NORMS = pytest.mark.parametrize("kind", list(BEYOND))


def fmn(kind=L2, epsilon=None, **options):
    threat = kind(epsilon=BEYOND[kind] if epsilon is None else epsilon)
    return FMN(**{"threat": threat, "steps": 30, "stop_inside": False} | options)


def fewest(model, clean):
    """Pixels of a linear model do not interact: those that can lower the score the most are changed first."""
    weight = model.weight.detach()
    gain = torch.maximum(weight * clean, weight * (clean - 1)).sum(1).flatten(1).sort(1, descending=True).values
    return ((gain.cumsum(1) <= model.score(clean).detach()[:, None]).sum(1) + 1).double()


def planes(kind, model, clean):
    """The smallest perturbation that reaches the boundary of a linear model, where the box is out of the way."""
    score, weight = model.score(clean).detach(), model.weight.detach()
    if kind is L0:
        return fewest(model, clean)
    return score / {Linf: weight.abs().sum(), L2: weight.norm(), L1: weight.abs().max()}[kind]


@NORMS
def test_on_a_linear_model_it_finds_the_smallest_perturbation(kind):
    model, clean = Linear(bias=6 if kind is L0 else 3.5), images(low=0.4, high=0.6)
    if kind is L1:
        model.weight.data *= 0.2
        model.weight.data[0, 0, 0] = 30  # one value is enough
    attack = fmn(kind, steps=1000 if kind is L2 else 400)
    found = attack(model, clean, ZEROS, INDEX)
    assert (model.score(found) < 0).all()
    size, least = attack.threat.size(found - clean), planes(kind, model, clean)
    assert (size >= least - 1e-12).all()
    assert (size <= (least + 1 if kind is L0 else 1.01 * least)).all()


def projected(kind, moved, clean, radius):
    """The ball's nearest point in the plainest words, then the box."""
    change = moved - clean
    if kind is Linf:
        change = change.clamp(-radius, radius)
    elif kind is L2:
        change = change * min(1, radius / change.norm().item())
    elif kind is L1:
        change = l1_projection(change[None], clean[None], radius)[0]
    else:
        size = (change.square() - (moved - moved.clamp(0, 1)).square()).sum(0).flatten()
        kept = torch.zeros_like(size)
        kept[size.sort(descending=True, stable=True).indices[: int(radius)]] = 1
        change = change * kept.view_as(change[0])
    return (clean + change).clamp(0, 1)


def naive(kind, model, clean, label, steps):
    """Algorithm 1 for one sample ``(C, H, W)``."""
    image, best, smallest, radius = clean, clean, math.inf, float(kind is L0)
    for step in range(steps):
        leaf = image[None].clone().requires_grad_()
        gap = margin(model, leaf, label)
        (gradient,) = torch.autograd.grad(gap, leaf)
        gradient, change = -gradient[0], image - clean
        size = {
            Linf: change.abs().max(), L2: change.norm(), L1: change.abs().sum(), L0: (change != 0).any(0).sum()
        }[kind].item()  # fmt: skip
        wave = (1 + math.cos(math.pi * step / steps)) / 2
        share, length = 0.001 + (0.05 - 0.001) * wave, wave
        dual = {Linf: gradient.abs().sum(), L2: gradient.norm(), L1: gradient.abs().max(), L0: math.inf}[kind]
        if gap < 0:
            if size < smallest:
                smallest, best = size, image
            shrunk = min(radius - 1, math.floor(radius * (1 - share))) if kind is L0 else radius * (1 - share)
            radius = min(shrunk, smallest)
        elif kind is L0:
            radius = max(radius + 1, math.floor(radius * (1 + share)))
        else:
            radius = (1 + share) * (radius if smallest < math.inf else size + (gap / dual).item())
        image = projected(kind, image + length * gradient / gradient.norm(), clean, radius)
    return best


@NORMS
def test_each_sample_equals_a_naive_loop(kind):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    found = fmn(kind)(model, clean, label, INDEX)
    assert (model(found).argmax(1) != label).any()
    for sample in range(6):
        expected = naive(kind, model, clean[sample], label[sample], 30)
        sizes = [fmn(kind).threat.size((image - clean[sample])[None]).item() for image in (found[sample], expected)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-9)
        assert torch.allclose(found[sample], expected, rtol=0, atol=1e-4)  # of images of one size either may be kept


@pytest.mark.parametrize("kind", [Linf, L2, L1])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), low=st.floats(0, 0.5), high=st.floats(0.5, 4))
def test_a_radius_per_sample_projects_each_sample_alone(kind, seed, low, high):
    clean = images(3, seed=seed % 1000, low=0.0, high=1.0)
    image = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius = torch.tensor([0.0, low, min(high, 1.0)], dtype=torch.float64)
    together = kind(epsilon=1).within(image, clean, radius.view(-1, 1, 1, 1)).clamp(0, 1)
    for sample, value in enumerate(radius.tolist()):
        alone = kind(epsilon=value).project(image[sample : sample + 1], clean[sample : sample + 1])
        assert torch.allclose(together[sample : sample + 1], alone, rtol=0, atol=1e-12)


@NORMS
def test_dual_norms_are_what_the_best_of_many_unit_steps_gains(kind):
    gradient = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = gradient.flatten(1)
    expected = {Linf: flat.abs().sum(1), L2: flat.norm(dim=1), L1: flat.abs().amax(1)}
    expected[L0] = gradient.abs().sum(1).amax((1, 2))
    assert torch.allclose(kind(epsilon=1).dual(gradient), expected[kind])


@NORMS
def test_a_step_costs_one_pass_and_the_last_image_is_only_looked_at(kind):
    log, clean = Log(Linear()), named(images())
    attack = fmn(kind, steps=12)
    (attempt,) = attack.attempts(log, clean, ZEROS, INDEX)
    assert attempt.forwards.tolist() == [log.forwards[name] for name in range(6)] == [12] * 6
    assert attempt.backwards.tolist() == [log.backwards[name] for name in range(6)] == [11] * 6
    assert attack.passes == 12


@NORMS
def test_samples_leave_with_the_first_success_inside_epsilon_and_others_end_on_the_ball(kind):
    model, clean, label = Linear(bias=6), images(), ZEROS
    smallest = fmn(kind)(model, clean, label, INDEX)
    assert (model.score(smallest) < 0).all()
    size = fmn(kind).threat.size(smallest - clean)
    epsilon = size.min().item() if kind is L0 else size.sort().values[2].item() * 1.0001
    attack = fmn(kind, epsilon, stop_inside=True)
    (attempt,) = attack.attempts(model, clean, label, INDEX)
    inside = size <= epsilon
    assert 1 <= inside.sum() < 6
    assert (model(attempt.image).argmax(1) != label)[inside].all()
    assert (attempt.forwards[inside] <= 30).all()
    assert (attempt.forwards[~inside] == 30).all()
    assert (attempt.margin[~inside].isnan() | (attempt.margin[~inside] < 0)).all()
    assert (attack.threat.size(attempt.image - clean) <= epsilon + 1e-9).all()


@NORMS
def test_results_do_not_depend_on_batch_size_or_order(kind):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = fmn(kind, 2 if kind is L0 else 0.1, stop_inside=True)
    together = attack(model, clean, label, INDEX)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = attack(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-8)
    alone = [attack(model, *part) for part in zip(*(x.split(1) for x in (clean, label, INDEX)), strict=True)]
    assert torch.allclose(torch.cat(alone), together, rtol=0, atol=1e-8)


@NORMS
def test_small_inputs_work(kind):
    empty = images()[:0]
    assert fmn(kind)(Net(), empty, ZEROS[:0], ZEROS[:0]).shape == empty.shape
    grey = images(channels=1)
    label = Net(1)(grey).argmax(1)
    assert (Net(1)(fmn(kind)(Net(1), grey, label, INDEX)).argmax(1) != label).any()
    assert torch.equal(fmn(kind, 0)(Linear(), images(), ZEROS, INDEX), images())
    assert torch.equal(fmn(kind)(Linear(bias=-20), images(), ZEROS, INDEX), images())


@NORMS
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_a_dead_gradient_moves_nothing_and_is_told(kind, poison):
    def model(image):
        logits = torch.stack([image.flatten(1).sum(1), torch.full((len(image),), -1.0, dtype=image.dtype)], 1)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * poison)
        return logits

    (attempt,) = fmn(kind).attempts(model, images(), ZEROS, INDEX)
    assert attempt.dead_gradient.all()
    assert torch.equal(attempt.image, images())


@NORMS
def test_logits_that_are_not_numbers_harm_no_image_and_no_other_sample(kind):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    broken = (clean - clean[2]).abs().amax((1, 2, 3)) == 0

    def poisoned(image):
        assert image.isfinite().all()
        near = (image - clean[2]).flatten(1).norm(dim=1) < 0.02
        return torch.where(near[:, None], torch.nan, model(image))

    found = fmn(kind)(poisoned, clean, label, INDEX)
    assert found.isfinite().all()
    assert torch.allclose(found[~broken], fmn(kind)(model, clean, label, INDEX)[~broken], rtol=0, atol=1e-9)


def test_descriptions_are_json_and_tell_settings_apart():
    variants = [
        fmn(), fmn(epsilon=0.5), fmn(Linf), fmn(steps=9), fmn(step_size=2), fmn(last_step_size=0.1), fmn(change=0.1),
        fmn(last_change=0.01), fmn(stop_inside=True), fmn(seed=1),
    ]  # fmt: skip
    assert len({json.dumps(attack.describe()) for attack in variants}) == len(variants)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be >= 2, got 1"),
        ({"step_size": 0.5, "last_step_size": 1}, r"last_step_size must be in \[0, step_size\], got 1"),
        ({"change": 1}, "need 0 <= last_change <= change < 1, got 0.001 and 1"),
        ({"last_change": 0.1}, "need 0 <= last_change <= change < 1, got 0.1 and 0.05"),
        ({"restarts": 2}, "FMN has nothing random: restarts must be 1, got 2"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        fmn(**options)
