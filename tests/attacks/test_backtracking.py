"""Momentum with backtracking (CCAT, MCAT), and the confidence that CCAT's attack maximises."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import INDEX, Linear, Net, images

from robustfg.attacks import (
    L0,
    L1,
    L2,
    Backtracking,
    CrossEntropy,
    Frame,
    Linf,
    Margin,
    NearestWrongCentre,
    Patch,
    TargetedMargin,
    TopClasses,
    WrongConfidence,
)
from robustfg.attacks.rng.philox import keyed_integers, keyed_normals
from robustfg.core.errors import UserError

LABELS = torch.zeros(6, dtype=torch.int64)


def attack(epsilon=0.05, **options):
    return Backtracking(**({"threat": Linf(epsilon=epsilon), "last_iterate": True, "random_start": False} | options))


def value_of(objective, model, image, label):
    logits = model(image)[0]
    others = torch.cat([logits[:label], logits[label + 1 :]])
    return {
        "cross_entropy": lambda: F.cross_entropy(logits[None], label[None]),
        "wrong_confidence": lambda: (others.exp() / logits.exp().sum()).max(),
        "nearest_wrong_centre": lambda: 2 * others.max(),
    }[objective.name]()


def naive(model, clean, label, norm, epsilon, objective, start, *, size, steps, momentum, factor):
    """One sample, as published: the value is computed anew before and after every step."""
    image, velocity, length, taken = start, torch.zeros_like(clean), size, []
    for _ in range(steps):
        image = image.detach().requires_grad_()
        before = value_of(objective, model, image, label)
        (gradient,) = torch.autograd.grad(before, image)
        unit = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        velocity = momentum * velocity + (1 - momentum) * unit
        change = image.detach() + length * velocity - clean
        change = change.clamp(-epsilon, epsilon) if norm == "linf" else change * min(1, epsilon / change.norm().item())
        candidate = (clean + change).clamp(0, 1)
        taken.append(bool(value_of(objective, model, candidate, label) >= before))
        if taken[-1]:
            image = candidate
        else:
            length = length / factor
    return image.detach(), taken


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", [CrossEntropy(), WrongConfidence(), NearestWrongCentre()])
@pytest.mark.parametrize(("momentum", "factor"), [(0.9, 1.5), (0.5, 1.1)])
def test_a_climb_equals_a_naive_loop_of_the_published_rule(norm, objective, momentum, factor):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    threat, size = (Linf(epsilon=0.5), 0.5) if norm == "linf" else (L2(epsilon=4.0), 4.0)
    options = {"steps": 15, "momentum": momentum, "factor": factor}
    found = attack(threat=threat, objective=objective, size=size, **options)(model, clean, label, INDEX)
    outcomes = set()
    for sample in range(6):
        one = slice(sample, sample + 1)
        expected, taken = naive(
            model, clean[one], label[sample], norm, threat.radius, objective, clean[one], size=size, **options
        )
        outcomes |= set(taken)
        assert torch.allclose(found[one], expected, rtol=0, atol=1e-10)
    assert True in outcomes
    assert False in outcomes or isinstance(objective, CrossEntropy)  # which rises at every step here


@pytest.mark.parametrize(
    "threat",
    [Linf(epsilon=0.05), L2(epsilon=0.3), L1(epsilon=1.0), L0(epsilon=3), Frame(epsilon=1), Patch(epsilon=0.25)],
)
def test_the_objective_never_falls_and_images_stay_allowed(threat):
    model, clean = Net(), images()
    label, objective = model(clean).argmax(1), WrongConfidence()
    values = []
    for steps in (1, 2, 4, 8, 16):
        found = attack(threat=threat, objective=objective, size="eps/4", steps=steps)(model, clean, label, INDEX)
        threat.check(found, clean)
        values.append(objective(model(found), label))
    assert (torch.stack([objective(model(clean), label), *values]).diff(dim=0) >= 0).all()
    assert (values[-1] > values[0]).any()


def test_too_long_a_step_is_shortened_until_it_helps():
    """Up a parabola from 0.5 to its top at 0.51: a step of 0.4 falls, as those of 0.2, 0.1 and 0.05 do."""

    def model(image):
        height = -(image - 0.51).square().flatten(1).sum(1)
        return torch.stack([-height, height], 1) / 2

    clean = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    options = {"size": 0.4, "momentum": 0.0, "factor": 2.0, "objective": Margin()}
    for steps, expected in ((1, 0.5), (4, 0.5), (5, 0.5), (6, 0.5125), (8, 0.5125)):
        found = attack(epsilon=0.45, steps=steps, **options)(model, clean, torch.tensor([0]))
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_a_fooled_sample_leaves_unless_the_last_iterate_counts():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    options = {"epsilon": 0.3, "size": "eps/6", "steps": 30, "objective": WrongConfidence()}
    stopped, climbed = (attack(last_iterate=last, **options) for last in (False, True))
    (early,), (late,) = (list(a.attempts(model, clean, label, INDEX)) for a in (stopped, climbed))
    assert (early.margin < 0).all()
    assert (early.forwards < 31).any()
    assert (late.forwards == 31).all()
    assert (late.backwards == 31).all()
    confidence = WrongConfidence()
    assert (confidence(model(late.image), label) > confidence(model(early.image), label)).all()


@pytest.mark.parametrize("last_iterate", [True, False])
def test_passes_are_counted_as_the_model_sees_them(last_iterate):
    model, clean, forwards, backwards = Net(), images(), [], []
    label = model(clean).argmax(1)

    def counting(image):
        logits = model(image)
        forwards.append(len(image))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: backwards.append(len(gradient)))
        return logits

    search = attack(0.02, last_iterate=last_iterate, steps=7, size="eps/3", restarts=2, random_start=True)
    attempts = list(search.attempts(counting, clean, label, INDEX))
    assert search.passes == 16
    assert sum(int(attempt.forwards.sum()) for attempt in attempts) == sum(forwards)
    assert sum(int(attempt.backwards.sum()) for attempt in attempts) == sum(backwards)
    assert (sum(forwards) == 16 * 6) == last_iterate


def test_starts_are_no_change_uniform_or_gaussian_by_sample_id():
    clean, index = images(60, size=8), torch.arange(60) * 7
    first = Backtracking(threat=Linf(epsilon=0.06), steps=1, size=0, last_iterate=True, seed=3, name="a")
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)).double()
    start = first(flat, clean, torch.zeros(60, dtype=torch.int64), index) - clean
    kinds = keyed_integers(3, 1, index, 3, "a", 0, 0, "start")[:, 0]
    assert kinds.unique().tolist() == [0, 1, 2]
    uniform = first.threat.uniform(clean, index, 3, "a", 0, 0)
    deviation = 0.06 / (2 * math.log(192))
    gaussian = (deviation * keyed_normals(192, index, 3, "a", 0, 0, "gaussian").view_as(clean).double()).clamp(
        -0.06, 0.06
    )
    for kind, expected in enumerate((torch.zeros_like(clean), uniform, gaussian)):
        assert torch.allclose(start[kinds == kind], expected[kinds == kind], rtol=0, atol=1e-12)
    alone = first(flat, clean[5:6], torch.zeros(1, dtype=torch.int64), index[5:6])
    assert torch.allclose(alone, (clean + start)[5:6], rtol=0, atol=1e-12)


def test_the_result_of_a_sample_does_not_depend_on_its_batch():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    search = attack(random_start=True, steps=10, size="eps/3", last_iterate=False)
    whole = search(model, clean, label, INDEX)
    for sample in range(6):
        one = slice(sample, sample + 1)
        assert torch.allclose(search(model, clean[one], label[one], INDEX[one]), whole[one], rtol=0, atol=1e-10)


def test_targets_are_climbed_to_one_after_the_other():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    search = attack(0.4, objective=TargetedMargin(), targets=TopClasses(count=2), size="eps/6", last_iterate=False)
    assert search.rounds == 2
    assert (model(search(model, clean, label, INDEX)).argmax(1) != label).all()


def test_on_a_linear_model_it_ends_in_the_corner_that_pgd_finds():
    model, clean = Linear(), images(low=0.4, high=0.6)
    found = attack(0.05, objective=Margin(), size="eps/4", steps=80)(model, clean, LABELS, INDEX)
    assert torch.allclose(found, clean - 0.05 * model.weight.detach().sign(), rtol=0, atol=1e-9)


def test_wrong_confidence_is_the_logarithm_of_the_largest_wrong_probability():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 3.5]])
    probability = logits.softmax(1)
    expected = torch.stack([probability[0, 2], probability[1, 1]]).log()
    assert torch.allclose(WrongConfidence()(logits, torch.tensor([0, 2])), expected)


def test_wrong_confidence_has_a_gradient_where_the_probability_is_zero_in_float32():
    logits = torch.tensor([[300.0, 0.0, 10.0]], requires_grad=True)
    assert logits.softmax(1)[0, 2] == 0
    (gradient,) = torch.autograd.grad(WrongConfidence()(logits, torch.tensor([0])).sum(), logits)
    assert gradient[0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("option", "message"),
    [({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"), ({"factor": 1.0}, "factor must be > 1, got 1.0"),
     ({"size": "eps*2"}, "step size must be"), ({"steps": 0}, "steps must be >= 1, got 0")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(option, message):
    with pytest.raises(UserError, match=message):
        attack(**option)
