"""APGD in l1: the algorithm for one sample at a time, the optimum of linear models, and what it costs."""

import pytest
import torch
import torch.nn.functional as F
from test_apgd import INDEX, Net, asked, images, never

from robustfg.attacks import L1, L1APGD, CrossEntropy, Engine, Linf, Margin
from robustfg.errors import UserError


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


def naive_l1_apgd(value_and_gradient, start, clean, epsilon, n, box_aware):
    """All points of one image ``(C, H, W)``, and how often the search went back or shortened its steps."""
    d = clean.numel()
    m = max(1, -(-4 * n // 100))
    k, eta, x, best, events = d / 5, epsilon, [start], (-float("inf"), None, None), []
    here, gradient = start, None
    for i in range(n):
        value, gradient = value_and_gradient(here)
        if value > best[0]:
            best = (value, here, gradient)
        if i and i % m == 0:
            sparser = int(((best[1] - clean).abs() > 1e-6).sum()) / 1.5
            events.append(sparser / k < 0.95)
            if sparser / k < 0.95:
                eta, (_, here, gradient) = epsilon, best
            else:
                eta = max(eta / 1.5, epsilon / 10)
            k = sparser
        allowed = gradient.clone()
        if box_aware:
            allowed[((here < 1e-6) & (gradient < 0)) | ((here > 1 - 1e-6) & (gradient > 0))] = 0
        top = allowed.flatten().abs().topk(max(1, int(k))).indices
        step = torch.zeros(d, dtype=clean.dtype)
        step[top] = allowed.flatten()[top].sign()
        here = project(here + eta * (step / step.abs().sum()).view_as(clean), clean, epsilon)
        x.append(here)
    return torch.stack(x), events


@pytest.mark.parametrize("box_aware", [True, False])
@pytest.mark.parametrize("steps", [20, 28])
@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()], ids=lambda o: o.name)
def test_every_image_asked_about_equals_the_algorithm_run_on_one_sample_alone(objective, steps, box_aware):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = l1(3.0, steps=steps, objective=objective, decision=never, box_aware=box_aware)
    seen, went_back = asked(attack, model, clean, label), []
    assert len(seen) == steps + 1
    start = attack.threat.project(clean + attack.threat.uniform(clean, INDEX, 0, "attack", 0, 0), clean)
    for sample in range(6):

        def value_and_gradient(image, sample=sample):
            image = image.clone().requires_grad_()
            value = objective(model(image[None]), label[sample : sample + 1]).sum()
            return value.detach(), torch.autograd.grad(value, image)[0]

        points, events = naive_l1_apgd(value_and_gradient, start[sample], clean[sample], 3.0, steps, box_aware)
        went_back += events
        assert torch.allclose(seen[:, sample], points, rtol=0, atol=1e-8)
    assert set(went_back) == {True, False}


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
        "random_start": True, "box_aware": True,
    }  # fmt: skip
