"""APGD in l-inf and l2: the paper's algorithm for one sample at a time, closed forms, and what it costs."""

import json
from collections import Counter
from fractions import Fraction
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustfg.attacks import APGD, L1, L2, CrossEntropy, DifferenceOfLogitsRatio, Engine, Linf, Margin
from robustfg.attacks.rng.philox import keyed_uniforms
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric

INDEX = torch.tensor([7, 3, 12, 0, 99, 41])
BOTH = pytest.mark.parametrize("kind", [Linf, L2])


def images(count=6, channels=3, size=4, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64)


class Net(nn.Sequential):
    """A small bumpy net in float64, centred so that it predicts all of its five classes."""

    def __init__(self, channels=3, classes=5):
        torch.manual_seed(1)
        conv = nn.Conv2d(channels, 8, 3, padding=1)
        super().__init__(conv, nn.Softplus(beta=5), nn.Flatten(), nn.Linear(8 * 16, classes))
        self.double()
        self[0].weight.data *= 4
        self[3].weight.data *= 10
        self[3].bias.data -= self(images(64, channels)).detach().mean(0)


class Linear(nn.Module):
    """Three logits linear in the image."""

    def __init__(self, classes=3, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 48, generator=generator, dtype=torch.float64))

    def forward(self, image):
        return image.flatten(1) @ self.weight.T


def never(output, label):
    """A decision that no image wins, so that every sample takes every step."""
    return -torch.ones(len(label), dtype=torch.float64)


def plain(kind=Linf, epsilon=0.1, **options):
    return APGD(threat=kind(epsilon=epsilon), engine=Engine(fold=False), **options)


def asked(attack, model, clean, label, index=INDEX):
    """Every image the attack asks about, ``(queries, B, C, H, W)``."""
    seen = []
    list(attack.attempts(lambda image: seen.append(image.detach().clone()) or model(image), clean, label, index))
    return torch.stack(seen)


# --- The algorithm, in the paper's words, for one sample


def checkpoints_of(n):
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return sorted({ceil(share * n) for share in p[1:] if share < 1})


def naive_apgd(value_and_gradient, start, clean, norm, epsilon, n, rho=0.75, alpha=0.75):
    """All points x[0..n] and what each checkpoint decided.

    Args:
        value_and_gradient: of the k-th point asked about.
        start: x[0]; one image without batch dimension, like ``clean``.
    """

    def project(point):
        change = point - clean
        if norm == "linf":
            change = change.clamp(-epsilon, epsilon)
        elif change.square().sum().sqrt() > epsilon:
            change = change * epsilon / change.square().sum().sqrt()
        return (clean + change).clamp(0, 1)

    def steepest(gradient):
        if norm == "linf":
            return gradient.sign()
        length = gradient.square().sum().sqrt()
        return gradient / length if length > 0 else gradient

    marks, eta, before, halved_before = checkpoints_of(n), 2 * epsilon, 0, False
    x, f, g, events = {0: start}, {}, {}, []
    reported = [start]
    best, f_max_at_mark = None, None
    rises = []
    for k in range(n):
        f[k], g[k] = value_and_gradient(k, x[k])
        if k == 0:
            best = (f[0], x[0], g[0])
            f_max_at_mark = f[0]
        else:
            rises.append(f[k] > f[k - 1])
            if f[k] > best[0]:
                best = (f[k], x[k], g[k])
        if k in marks:
            few = bool(sum(rises) < rho * (k - before))
            stuck = bool(not halved_before and best[0] == f_max_at_mark)
            events.append((few, stuck))
            if few or stuck:
                eta = eta / 2
                f[k], x[k], g[k] = best
            halved_before, f_max_at_mark, before, rises = few or stuck, best[0], k, []
        z = project(x[k] + eta * steepest(g[k]))
        x[k + 1] = z if k == 0 else project(x[k] + alpha * (z - x[k]) + (1 - alpha) * (x[k] - x[k - 1]))
        reported.append(x[k + 1])
    return torch.stack(reported), events


def score_of(objective, logits, label):
    others = [k for k in range(len(logits)) if k != label]
    if isinstance(objective, CrossEntropy):
        return F.cross_entropy(logits[None], label[None])
    margin = logits[others].max() - logits[label]
    if isinstance(objective, Margin):
        return margin
    falling = logits.sort(descending=True).values
    return margin / (falling[0] - falling[2] + 1e-12)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("objective", [CrossEntropy(), Margin(), DifferenceOfLogitsRatio()], ids=lambda o: o.name)
@pytest.mark.parametrize(("kind", "epsilon"), [(Linf, 0.2), (L2, 0.8)])
def test_every_image_asked_about_equals_the_papers_algorithm_run_on_one_sample_alone(
    kind, epsilon, objective, random_start
):
    model, clean, steps = Net(), images(), 25  # before it converges, where rounding decides what rises
    label = model(clean).argmax(1)
    attack = plain(kind, epsilon, steps=steps, objective=objective, random_start=random_start, decision=never)
    seen, decided = asked(attack, model, clean, label), Counter()
    assert len(seen) == steps + 1
    start = clean
    if random_start:
        noise = attack.threat.uniform(clean, INDEX, 0, "attack", 0, 0)
        start = attack.threat.project(clean + noise, clean)
    for sample in range(6):

        def value_and_gradient(k, image, sample=sample):
            image = image.clone().requires_grad_()
            value = score_of(objective, model(image[None])[0], label[sample])
            (gradient,) = torch.autograd.grad(value, image)
            return value.detach(), gradient

        points, events = naive_apgd(
            value_and_gradient, start[sample], clean[sample], attack.threat.norm, epsilon, steps
        )
        decided.update(events)
        assert torch.allclose(seen[:, sample], points, rtol=0, atol=1e-9)
    assert decided[False, False] > 0
    assert decided[True, False] > 0


class Script:
    """An objective with given values and gradients, whatever the image is."""

    name = "script"

    def __init__(self, values, gradients):
        self.values, self.gradients, self.calls = values, gradients, 0

    def __call__(self, output, label):
        value = (output * self.gradients[self.calls]).sum(1)
        self.calls += 1
        return value - value.detach() + self.values[self.calls - 1]


@st.composite
def scripts(draw):
    steps = draw(st.integers(1, 45))
    values = draw(st.lists(st.integers(0, 4), min_size=2 * steps, max_size=2 * steps))
    if draw(st.booleans()):  # rise nearly always, so that the share of rises is near rho
        values = [place // 2 - 3 * (value == 0) for place, value in enumerate(values)]
    seed = draw(st.integers(0, 10**6))
    gradients = torch.randn(steps, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return steps, torch.tensor(values, dtype=torch.float64).view(steps, 2), gradients


@BOTH
@settings(deadline=None, max_examples=150)
@given(script=scripts())
def test_checkpoints_decide_as_in_the_paper_whatever_the_values(kind, script):
    steps, values, gradients = script
    clean, label = images(2, 1, 1, seed=3, low=0.4, high=0.6).expand(-1, 3, -1, -1).contiguous(), torch.tensor([0, 1])
    objective = Script(values, gradients)
    attack = plain(kind, 0.25, steps=steps, objective=objective, random_start=False, decision=never)
    seen = asked(attack, lambda image: image.flatten(1), clean, label, INDEX[:2])
    for sample in range(2):
        points, _ = naive_apgd(
            lambda k, image, sample=sample: (values[k, sample], gradients[k, sample].view(3, 1, 1)),
            clean[sample], clean[sample], attack.threat.norm, 0.25, steps,
        )  # fmt: skip
        assert torch.allclose(seen[:, sample], points, rtol=0, atol=1e-12)


def step_length_after_the_first_checkpoint(values):
    """Of 100 l2 steps on a scripted objective: the first goes to one end of the ball, the next 21 stay there.

    The checkpoint is after step 22, and step 23 goes back towards the other end.
    """
    values = torch.tensor([*values, *[0.0] * 77], dtype=torch.float64)[:, None]
    gradients = torch.zeros(100, 1, 3, dtype=torch.float64)
    gradients[0, 0, 0], gradients[22, 0, 0] = -1, 1
    clean = torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64)
    attack = plain(L2, 0.4, steps=100, objective=Script(values, gradients), random_start=False, decision=never)
    seen = asked(attack, lambda image: image.flatten(1), clean, torch.tensor([0]), INDEX[:1])
    assert torch.allclose(seen[1:23, 0, 0, 0, 0], torch.tensor(0.1).double())
    return (seen[23] - seen[22]).norm().item() / 0.75


@pytest.mark.parametrize("first_step_rises", [True, False])
@pytest.mark.parametrize(
    ("rises", "halved"), [(2, True), (15, True), (16, True), (17, False), (18, False), (21, False)]
)
def test_at_the_first_checkpoint_22_steps_are_counted_as_they_were(rises, halved, first_step_rises):
    """17 of 22 is the first number not under 0.75. auto-attack compares with a wrapped index and sees 22 of 22."""
    ups = [False] * 22
    ups[-1] = True  # the last point is the best one
    places = [0, *range(20, 0, -1)] if first_step_rises else range(20, -1, -1)
    for place in list(places)[: rises - 1]:
        ups[place] = True
    values = [0.0]
    for up in ups:
        values.append(values[-1] + (100.0 if up else -0.1))
    assert (sum(ups), ups[0]) == (rises, first_step_rises or rises == 22)
    assert step_length_after_the_first_checkpoint(values) == pytest.approx(0.4 if halved else 0.8, abs=1e-9)


def test_checkpoints_are_those_of_the_paper():
    """p: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert plain(steps=100).checkpoints == (22, 41, 57, 70, 80, 87, 93, 99)
    assert plain(steps=10).checkpoints == (3, 5, 6, 7, 8, 9, 10)
    assert plain(steps=1).checkpoints == (1,)
    for steps in range(1, 300):
        assert plain(steps=steps).checkpoints == tuple(checkpoints_of(steps))


# --- Closed forms


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()], ids=lambda o: o.name)
@pytest.mark.parametrize("steps", [1, 2, 100])
def test_linf_reaches_the_corner_of_a_linear_model_with_the_first_step_also_where_the_box_cuts(steps, objective):
    model, clean = Linear(classes=2), images()
    label = torch.tensor([0, 1, 0, 1, 1, 0])
    weight = (model.weight[1] - model.weight[0]).detach().view(3, 4, 4)
    away = torch.where(label == 0, 1.0, -1.0).double()[:, None, None, None]
    reached = asked(plain(Linf, 0.1, steps=steps, objective=objective, decision=never), model, clean, label)[1:]
    corner = (clean + 0.1 * (away * weight).sign()).clamp(0, 1)
    assert torch.allclose(reached, corner.expand_as(reached), rtol=0, atol=1e-12)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()], ids=lambda o: o.name)
def test_l2_lowers_a_linear_margin_by_epsilon_times_the_l2_norm(objective, random_start):
    model, clean = Linear(classes=2), images(low=0.4, high=0.6)
    label = torch.tensor([0, 1, 0, 1, 1, 0])
    sure = lambda image: model(image) + 100 * F.one_hot(label, 2)  # noqa: E731  # nobody is fooled
    if isinstance(objective, CrossEntropy):
        sure = lambda image: model(image) + 20 * F.one_hot(label, 2)  # noqa: E731
    found = plain(L2, 0.3, steps=40, objective=objective, random_start=random_start)(sure, clean, label, INDEX)
    change = Margin()(sure(found), label) - Margin()(sure(clean), label)
    best = 0.3 * (model.weight[1] - model.weight[0]).norm()
    assert torch.allclose(change, best.expand(6).detach(), rtol=0, atol=1e-9)


# --- Starts


def test_random_starts_are_uniform_in_the_ball_and_keyed_by_seed_name_draw_restart_and_sample():
    clean = images(low=0.2, high=0.8)
    attack = plain(steps=2, restarts=2, seed=5, name="mine", decision=never)
    seen = asked(attack, Linear(), clean, torch.zeros(6, dtype=torch.int64))
    for restart, start in enumerate(seen[::3]):
        uniform = keyed_uniforms(48, INDEX, 5, "mine", 0, restart).view_as(clean).double()
        assert torch.allclose(start, clean + 0.1 * (2 * uniform - 1), rtol=0, atol=1e-7)


@BOTH
def test_without_a_random_start_the_first_restart_begins_at_the_clean_image_and_the_next_at_random(kind):
    clean = images()
    attack = plain(kind, steps=2, restarts=2, random_start=False, decision=never)
    seen = asked(attack, Linear(), clean, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(seen[0], clean)
    assert ((seen[3] - clean).flatten(1).abs().amax(1) > 1e-3).all()


# --- Costs, and who is attacked for how long


class Counting(nn.Module):
    """Counts passes per sample: the pixel [0, 0, 0] has no weight, so no step moves it and it can name the sample."""

    def __init__(self):
        super().__init__()
        self.model = Net()
        self.model[0].weight.data[:, 0] = 0
        self.forwards, self.backwards = Counter(), Counter()

    def forward(self, image):
        names = [round(value) for value in (image[:, 0, 0, 0] * 100).tolist()]
        logits = self.model(image)
        self.forwards.update(names)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backwards.update(names))
        return logits


def named_images(count=6):
    clean = images(count)
    clean[:, 0, 0, 0] = torch.arange(count) / 100
    return clean


@BOTH
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_n_steps_cost_n_plus_one_forwards_and_n_backwards(kind, steps):
    model, clean = Counting(), named_images()
    attack = plain(kind, steps=steps, random_start=False, decision=never)
    attempt = next(attack.attempts(model, clean, torch.zeros(6, dtype=torch.int64), INDEX))
    assert attempt.forwards.tolist() == [model.forwards[name] for name in range(6)] == [steps + 1] * 6
    assert attempt.backwards.tolist() == [model.backwards[name] for name in range(6)] == [steps] * 6
    assert attack.passes == steps + 1


def test_fooled_samples_leave_and_cost_no_more():
    model, clean = Counting(), named_images()
    label = model.model(clean).argmax(1)
    attempt = next(plain(Linf, 0.04, steps=30, random_start=False).attempts(model, clean, label, INDEX))
    assert attempt.forwards.tolist() == [model.forwards[name] for name in range(6)]
    assert attempt.backwards.tolist() == [model.backwards[name] for name in range(6)]
    fooled = attempt.margin < 0
    assert fooled.any()
    assert torch.equal(attempt.forwards[fooled], attempt.first_success[fooled] + 1)
    assert (model.model(attempt.image).argmax(1) != label).tolist() == fooled.tolist()


@BOTH
@pytest.mark.parametrize("objective", [CrossEntropy(), DifferenceOfLogitsRatio()], ids=lambda o: o.name)
def test_results_do_not_depend_on_batch_size_or_order(kind, objective):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = plain(kind, 0.02 if kind is Linf else 0.09, steps=25, objective=objective, restarts=2)
    together = attack(model, clean, label, INDEX)
    counts = next(attack.attempts(model, clean, label, INDEX)).forwards.tolist()
    assert len(set(counts)) > 1
    assert max(counts) == 26
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = attack(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-9)
    for size in (1, 4):
        parts = [attack(model, *part) for part in zip(*(x.split(size) for x in (clean, label, INDEX)), strict=True)]
        assert torch.allclose(torch.cat(parts), together, rtol=0, atol=1e-9)


def test_the_image_with_the_smallest_decision_margin_is_kept_not_the_one_with_the_highest_objective():
    """The objective climbs away from where the margin is smallest."""

    class Away:
        name = "away"

        def __call__(self, output, label):
            return -output[:, 1]

    clean = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    model = lambda image: torch.stack([torch.full((len(image),), 9.0).double(), image.flatten(1).sum(1)], 1)  # noqa: E731
    attempt = next(plain(steps=10, objective=Away(), random_start=False).attempts(model, clean, torch.tensor([0])))
    assert torch.equal(attempt.image, clean)  # the start: all later images have a larger margin
    assert attempt.margin.item() == 9 - 24


# --- Odd inputs


@BOTH
@pytest.mark.parametrize("random_start", [True, False])
def test_epsilon_zero_returns_the_clean_image(kind, random_start):
    assert torch.equal(
        plain(kind, "0", steps=12, random_start=random_start)(Net(), images(), INDEX % 5, INDEX), images()
    )


@BOTH
def test_empty_batches_one_channel_and_two_classes_work(kind):
    none = torch.zeros(0, dtype=torch.int64)
    assert plain(kind, restarts=2)(Net(), images()[:0], none, none).shape == (0, 3, 4, 4)
    model, clean = Net(channels=1, classes=2), images(channels=1)
    label = model(clean).argmax(1)
    for objective in (CrossEntropy(), Margin(), DifferenceOfLogitsRatio()):
        found = plain(kind, steps=10, objective=objective)(model, clean, label, INDEX)
        assert found.shape == (6, 1, 4, 4)
        assert (Margin()(model(found), label) > Margin()(model(clean), label)).all()


@BOTH
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_gradients_that_are_zero_or_not_finite_are_flagged_and_move_nothing(kind, poison):
    def model(image):
        logits = Linear()(image)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * poison)
        return logits + 100 * F.one_hot(torch.zeros(len(image), dtype=torch.int64), 3)

    attempt = next(plain(kind, steps=30, random_start=False).attempts(model, images(), torch.zeros(6).long(), INDEX))
    assert attempt.dead_gradient.all()
    assert torch.equal(attempt.image, images())


@BOTH
def test_images_stay_in_ball_and_box_in_float32(kind):
    clean = images().float().round(decimals=1)
    seen = asked(plain(kind, "8/255", steps=30, decision=never), Net().float(), clean, INDEX % 5).double()
    change = (seen - clean.double()).flatten(2)
    size = change.abs().amax(2) if kind is Linf else change.square().sum(2).sqrt()
    assert (size <= 8 / 255 + 1e-6).all()
    assert seen.min() >= 0
    assert seen.max() <= 1


@pytest.mark.parametrize("option", ["rho", "momentum"])
def test_shares_outside_zero_to_one_are_refused_by_name(option):
    with pytest.raises(UserError, match=rf"{option} must be in \[0, 1\], got 1.5"):
        plain(**{option: 1.5})


def test_l1_is_refused_with_the_way_out():
    with pytest.raises(UserError, match="use L1APGD"):
        APGD(threat=L1(epsilon=12))


def test_a_description_is_json_and_tells_settings_apart():
    variants = [
        plain(), plain(L2), plain(epsilon=0.2), plain(steps=6), plain(rho=0.5), plain(momentum=1.0), plain(seed=1),
        plain(random_start=False), plain(restarts=2), plain(objective=CrossEntropy()),
    ]  # fmt: skip
    assert len({json.dumps(attack.describe()) for attack in variants}) == len(variants)
    assert json.loads(json.dumps(plain(L2, "1/2").describe())) == {
        "norm": "l2", "epsilon": "1/2", "steps": 100, "restarts": 1, "objective": "margin", "seed": 0,
        "random_start": True, "rho": 0.75, "momentum": 0.75,
    }  # fmt: skip
