"""APGD in l1: the algorithm for one sample at a time, the optimum of linear models, and what it costs."""

import pytest
import torch
import torch.nn.functional as F
from test_apgd import INDEX, Net, asked, images, never

from robustfg.attacks import L1, L1APGD, CrossEntropy, Engine, Linf, Margin, TargetedDLR, TopClasses
from robustfg.attacks.rng.philox import keyed_normals
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric


def l1(epsilon=1.5, **options):
    return L1APGD(threat=L1(epsilon=epsilon), engine=Engine(fold=False), **options)


def project(point, clean, epsilon):
    """Bisection for the threshold: sign(c) min(max(|c| - t, 0), room to the box)."""
    change = point - clean
    room = torch.where(change > 0, 1 - clean, clean)
    low, high = 0.0, float(change.abs().max())
    cut = lambda t: torch.minimum((change.abs() - t).clamp_min(0), room)  # noqa: E731
    if cut(0.0).sum() <= epsilon:
        high = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).sum() > epsilon else (low, middle)
    return clean + change.sign() * cut(high)


def l0(change):
    return int((change.abs() > 1e-6).sum())


def naive_l1_apgd(value_and_gradient, start, clean, epsilon, n, box_aware, *, from_start=False):
    """The released algorithm on one image ``(C, H, W)``.

    Returns:
        All points, how often the search went back or shortened its steps, and the best of all points.
    """
    d = clean.numel()
    m = max(1, int(0.04 * n))
    old, k = (l0(start - clean), l0(start - clean) / 1.5) if from_start else (d, 0.2 * d)
    eta, x, best, events = epsilon, [start], (-float("inf"), None, None), []
    here, gradient = start, None
    for i in range(n):
        value, gradient = value_and_gradient(here)
        if value > best[0]:
            best = (value, here, gradient)
        if i and i % m == 0:
            new = l0(best[1] - clean)
            events.append(new / old < 0.95)
            if new / old < 0.95:
                eta, (_, here, gradient) = epsilon, best
            else:
                eta = max(eta / 1.5, epsilon / 10)
            old, k = new, new / 1.5
        allowed = gradient.clone()
        if box_aware:
            allowed[((here < 1e-6) & (gradient < 0)) | ((here > 1 - 1e-6) & (gradient > 0))] = 0
        top = allowed.flatten().abs().topk(max(1, int(k))).indices
        step = torch.zeros(d, dtype=clean.dtype)
        step[top] = allowed.flatten()[top].sign()
        here = project(here + eta * (step / step.abs().sum()).view_as(clean), clean, epsilon)
        x.append(here)
    return torch.stack(x), events, here if value_and_gradient(here)[0] > best[0] else best[1]


def start_of(clean, epsilon, sample):
    noise = keyed_normals(clean[0].numel(), INDEX, 0, "attack", 0, 0, "start").double().view_as(clean)
    return project(clean[sample] + noise[sample], clean[sample], epsilon)


def answers(model, objective, label):
    def value_and_gradient(image):
        image = image.clone().requires_grad_()
        value = objective(model(image[None]), label[None]).sum()
        return value.detach(), torch.autograd.grad(value, image)[0]

    return value_and_gradient


@pytest.mark.parametrize("box_aware", [True, False])
@pytest.mark.parametrize("steps", [20, 28])
@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()], ids=lambda o: o.name)
def test_every_image_asked_about_equals_the_algorithm_run_on_one_sample_alone(objective, steps, box_aware):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = l1(3.0, steps=steps, objective=objective, decision=never, box_aware=box_aware)
    seen, went_back = asked(attack, model, clean, label), []
    assert len(seen) == steps + 1
    for sample in range(6):
        ask = answers(model, objective, label[sample])
        start = start_of(clean, 3.0, sample)
        points, events, _ = naive_l1_apgd(ask, start, clean[sample], 3.0, steps, box_aware)
        went_back += events
        assert torch.allclose(seen[:, sample], points, rtol=0, atol=1e-8)
    assert set(went_back) == {True, False}


@pytest.mark.parametrize(("steps", "parts"), [(60, (18, 18, 24)), (25, (8, 8, 9)), (5, (2, 2, 1))])
def test_larger_radii_first_equal_the_algorithm_run_three_times(steps, parts):
    model, clean, objective = Net(), images(), CrossEntropy()
    label = model(clean).argmax(1)
    attack = l1(1.0, steps=steps, objective=objective, decision=never, larger_first=True)
    seen = asked(attack, model, clean, label)
    assert len(seen) == attack.passes == steps + 3
    for sample in range(6):
        ask, points = answers(model, objective, label[sample]), []
        best = start_of(clean, 3.0, sample)
        for factor, n in zip((3.0, 2.0, 1.0), parts, strict=True):
            start = project(best, clean[sample], factor)
            tried, _, best = naive_l1_apgd(ask, start, clean[sample], factor, n, True, from_start=True)
            points.append(tried)
        assert torch.allclose(seen[:, sample], torch.cat(points), rtol=0, atol=1e-8)


def test_successes_at_the_larger_radii_do_not_count():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = l1(0.3, steps=30, larger_first=True)
    (attempt,) = attack.attempts(model, clean, label, INDEX)
    attack.threat.check(attempt.image, clean)
    assert (attempt.margin > 0).any()
    assert ((attempt.margin < 0) == (model(attempt.image).argmax(1) != label)).all()
    (wide,) = l1(0.9, steps=30).attempts(model, clean, label, INDEX)
    assert ((wide.margin < 0) & (attempt.margin > 0)).any()
    assert attempt.forwards.max() == 33
    assert attempt.backwards.max() == 32


def test_larger_radii_first_work_with_targets():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = l1(1.0, steps=25, larger_first=True, objective=TargetedDLR(), targets=TopClasses(count=4))
    assert attack.passes == 4 * 28 + 1  # the clean logits
    single = l1(1.0, steps=25, larger_first=True)
    broken, less = ((model(a(model, clean, label, INDEX)).argmax(1) != label).sum() for a in (attack, single))
    assert broken >= less > 0


def best_rise(weight, clean, epsilon):
    """The most a linear function may rise: the budget goes to the largest weights, each as far as the box allows."""
    rise, left = 0.0, epsilon
    for place in weight.abs().argsort(descending=True).tolist():
        spent = min(left, float(1 - clean[place] if weight[place] > 0 else clean[place]))
        rise, left = rise + spent * float(weight[place].abs()), left - spent
    return rise


@pytest.mark.parametrize("epsilon", [0.1, 1.5, 4.0])
@pytest.mark.parametrize("random_start", [True, False])
def test_a_linear_model_is_driven_to_its_optimum_also_where_the_box_cuts(epsilon, random_start):
    """To it where one pixel value takes the whole budget, else nearly: steps are never shorter than epsilon / 10."""
    weight = torch.randn(48, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clean = images()
    model = lambda image: torch.stack([100 - image.flatten(1) @ weight, image.flatten(1) @ weight], 1) / 2  # noqa: E731
    label = torch.zeros(6, dtype=torch.int64)
    found = l1(epsilon, random_start=random_start)(model, clean, label, INDEX)
    rise = Margin()(model(found), label) - Margin()(model(clean), label)
    best = [best_rise(weight, image.flatten(), epsilon) for image in clean]
    assert rise.tolist() == pytest.approx(best, rel=1e-9 if epsilon == 0.1 else 0.02)
    assert (rise <= rise.new_tensor(best) + 1e-9).all()


def test_n_steps_cost_n_plus_one_forwards_and_n_backwards():
    passes = {"forwards": 0, "backwards": 0}
    net = Net()

    def model(image):
        passes["forwards"] += 1
        logits = net(image)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passes.update(backwards=passes["backwards"] + 1))
        return logits

    attempt = next(l1(steps=30, decision=never).attempts(model, images(), INDEX % 5, INDEX))
    assert passes == {"forwards": 31, "backwards": 30}
    assert (attempt.forwards.tolist(), attempt.backwards.tolist()) == ([31] * 6, [30] * 6)


def test_results_do_not_depend_on_batch_size_or_order():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = l1(0.6, steps=25, restarts=2)
    together = attack(model, clean, label, INDEX)
    assert len(set(next(attack.attempts(model, clean, label, INDEX)).forwards.tolist())) > 1
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.allclose(attack(model, clean[order], label[order], INDEX[order]), together[order], rtol=0, atol=1e-9)
    parts = [attack(model, *part) for part in zip(*(x.split(1) for x in (clean, label, INDEX)), strict=True)]
    assert torch.allclose(torch.cat(parts), together, rtol=0, atol=1e-9)


def test_images_stay_in_ball_and_box_in_float32():
    seen = asked(l1(2.0, steps=60, decision=never), Net().float(), images().float().round(decimals=1), INDEX % 5)
    change = (seen.double() - images().float().round(decimals=1).double()).flatten(2).abs().sum(2)
    assert (change <= 2 + 1e-6).all()
    assert seen.min() >= 0
    assert seen.max() <= 1


@pytest.mark.parametrize("random_start", [True, False])
def test_epsilon_zero_empty_batches_and_dead_gradients(random_start):
    none = torch.zeros(0, dtype=torch.int64)
    assert l1()(Net(), images()[:0], none, none).shape == (0, 3, 4, 4)
    assert torch.equal(l1("0", steps=9, random_start=random_start)(Net(), images(), INDEX % 5, INDEX), images())
    flat = lambda image: F.one_hot(torch.zeros(len(image), dtype=torch.int64), 3) + 0 * image.flatten(1)[:, :3]  # noqa: E731
    attempt = next(l1(steps=30, random_start=False).attempts(flat, images(), torch.zeros(6).long(), INDEX))
    assert attempt.dead_gradient.all()
    assert torch.equal(attempt.image, images())


def test_other_norms_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="L1APGD is for l1, got linf: use APGD"):
        L1APGD(threat=Linf(epsilon=0.1))
    with pytest.raises(UserError, match="larger_first begins at random: set random_start: true"):
        l1(larger_first=True, random_start=False)
    with pytest.raises(UserError, match="larger_first needs steps >= 5, got 4"):
        l1(larger_first=True, steps=4)


def test_box_aware_steps_reach_what_the_published_ones_miss():
    """The largest weight belongs to a white pixel, so the published step along it alone is lost."""
    weight = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    clean = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64).view(1, 3, 1, 1)
    model = lambda image: torch.stack([9 - image.flatten(1) @ weight, 0 * image.flatten(1)[:, 0]], 1)  # noqa: E731
    found = {aware: l1(0.4, box_aware=aware, random_start=False)(model, clean, torch.tensor([0])) for aware in (1, 0)}
    assert found[1].flatten().tolist() == pytest.approx([1.0, 0.9, 0.5])
    assert torch.equal(found[0], clean)


def test_a_description_tells_what_makes_the_attack():
    assert l1("3/2", steps=7, restarts=2).describe() == {
        "norm": "l1", "epsilon": "3/2", "steps": 7, "restarts": 2, "objective": "margin", "seed": 0,
        "random_start": True, "box_aware": True, "larger_first": False,
    }  # fmt: skip
