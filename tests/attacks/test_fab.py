import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from test_gradient import INDEX, LABEL, Linear, Net, images
from test_hyperplane import least
from torch import nn

from robustfg.attacks import FAB, L1, L2, Engine, Linf
from robustfg.core.errors import UserError

KINDS = {"linf": Linf, "l2": L2, "l1": L1}
WIDE = {"linf": 1, "l2": 1000, "l1": 1000}
NORMS = pytest.mark.parametrize("norm", KINDS)
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
TARGETS = pytest.mark.parametrize("targets", [None, 3], ids=["FAB", "FAB-T"])


def fab(norm="linf", epsilon=None, **options):
    """By default one that searches the smallest perturbation to the end."""
    options = {"steps": 12, "stop_inside": False} | options
    return FAB(threat=KINDS[norm](epsilon=WIDE[norm] if epsilon is None else epsilon), **options)


def sizes(norm, image, clean):
    return torch.linalg.vector_norm((image - clean).flatten(1), float("inf") if norm == "linf" else int(norm[1]), dim=1)


def truth(model, clean):
    with torch.no_grad():
        return model(clean).argmax(1)


class Rings(nn.Module):
    """Two-pixel images; Gaussian classes of unlike widths, so that the boundaries are curved."""

    MEANS = torch.tensor([[0.3, 0.4], [0.8, 0.7], [0.2, 0.9]], dtype=torch.float64)
    WIDTHS = torch.tensor([1.0, 2.5, 0.6], dtype=torch.float64)

    def forward(self, image):
        distance = (image.flatten(1)[:, None] - self.MEANS).square().sum(2)
        return -self.WIDTHS * distance - 1000  # all negative, like a Gaussian head's


class Passes(nn.Module):
    """Counts passes per sample, which its first pixel names: the model does not see it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forwards, self.backwards = model, Counter(), Counter()

    def forward(self, image):
        names = [round(value) for value in (image[:, 0, 0, 0] * 100).tolist()]
        logits = self.model(torch.cat([image[:, :, :1] * 0, image[:, :, 1:]], 2))
        self.forwards.update(names)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backwards.update(names))
        return logits


# --- Closed forms


@NORMS
@TARGETS
def test_on_a_linear_model_the_perturbation_is_the_margin_over_the_dual_norm(norm, targets):
    model, clean = Linear(), images(low=0.4, high=0.6)
    label = truth(model, clean)
    model.weight.data[0, 0, 0] = 8 * model.weight.data.abs().max()  # within reach of a single coordinate
    model.bias = -model.score(clean).detach().mean()
    label = truth(model, clean)
    found = sizes(norm, fab(norm, targets=targets)(model, clean, label, INDEX), clean)
    expected = model.score(clean).detach().abs() / torch.linalg.vector_norm(model.weight.detach(), DUAL[norm])
    assert ((found >= expected) & (found <= 1.001 * expected)).all()


@NORMS
def test_where_the_box_binds_the_perturbation_is_that_of_a_linear_program(norm):
    model, clean = Linear(channels=1, size=3), images(channels=1, size=3).round()  # every pixel at an end of the box
    model.bias = -model.score(clean).detach().mean()
    score = model.score(clean).detach()
    label = truth(model, clean)
    found = sizes(norm, fab(norm)(model, clean, label, INDEX), clean).numpy()
    weight = model.weight.detach().flatten().numpy()
    free = score.abs() / torch.linalg.vector_norm(model.weight.detach(), DUAL[norm])
    expected = [
        least(norm, one.flatten().numpy(), weight, -gap) for one, gap in zip(clean, score.tolist(), strict=True)
    ]
    assert (np.array(expected) > 1.05 * free.numpy()).sum() >= 3  # the box does bind
    assert (found >= np.array(expected) * (1 - 1e-6)).all()
    assert (found <= np.array(expected) * 1.001).all()


@pytest.mark.parametrize(("norm", "targets"), [("linf", 2), ("l2", 2), ("l1", 2), ("l2", None)])
def test_curved_boundaries_of_a_gaussian_head_are_reached_where_they_are_nearest(norm, targets):
    model = Rings()
    clean = torch.tensor([[0.35, 0.45], [0.7, 0.75], [0.2, 0.85], [0.45, 0.3]], dtype=torch.float64).view(4, 1, 1, 2)
    label = truth(model, clean)
    found = sizes(norm, fab(norm, steps=60, targets=targets)(model, clean, label), clean)
    axis = torch.linspace(0, 1, 1001, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    answer = truth(model, grid)
    for sample in range(4):
        nearest = sizes(norm, grid[answer != label[sample]], clean[sample]).min().item()
        assert found[sample].item() == pytest.approx(nearest, rel=0.01, abs=1e-3)


# --- Steps, naively


def naive_projection(norm, image, normal, gap):
    """The change to the plane: by a numerical minimiser, by bisection, by filling up one pixel after another."""
    image, normal = image.flatten().numpy(), normal.flatten().numpy()
    if norm == "l2":
        found = minimize(
            lambda d: d @ d / 2, np.zeros_like(image), jac=lambda d: d, method="SLSQP",
            bounds=list(zip(-image, 1 - image, strict=True)), options={"ftol": 1e-16, "maxiter": 1000},
            constraints={"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal},
        )  # fmt: skip
        return torch.from_numpy(found.x)
    sign = np.sign(gap * normal)
    room = np.where(sign > 0, 1 - image, np.where(sign < 0, image, 0))
    if norm == "linf":  # bisection of the common amount
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (middle, high)
                if normal @ (sign * np.minimum(middle, room)) * np.sign(gap) < abs(gap)
                else (low, middle)
            )
        return torch.from_numpy(sign * np.minimum(high, room))
    change, missing = np.zeros_like(image), abs(gap)
    for place in sorted(range(len(image)), key=lambda place: -abs(normal[place])):
        change[place] = sign[place] * min(room[place], missing / abs(normal[place]))
        missing -= abs(change[place] * normal[place])
        if missing < 1e-12:
            break
    return torch.from_numpy(change)


def naive_walk(model, clean, label, norm, steps, others, alpha_max=0.1, eta=1.05, beta=0.9):
    """The wrong images of algorithm 1 for one sample, without a final search; ``others``: the classes in question."""
    current, wrong, order = clean, [], float("inf") if norm == "linf" else int(norm[1])
    for _ in range(steps):
        image = current.clone().requires_grad_()
        logits = model(image)[0]
        if logits.argmax().item() != label:  # still wrong after the way back
            wrong.append(current)
        planes = []
        for other in others:
            rise = logits[other] - logits[label]
            (normal,) = torch.autograd.grad(rise, image, retain_graph=True)
            planes.append(
                (abs(rise.item()) / torch.linalg.vector_norm(normal, DUAL[norm]).item(), -rise.item(), normal)
            )
        _, gap, normal = min(planes, key=lambda plane: plane[0])
        change = naive_projection(norm, current, normal, gap).view_as(clean)
        gap_clean = gap + (normal * (current - clean)).sum().item()
        change_clean = naive_projection(norm, clean, normal, gap_clean).view_as(clean)
        length, length_clean = (torch.linalg.vector_norm(c, order).item() for c in (change, change_clean))
        alpha = min(length / (length + length_clean), alpha_max)
        current = ((1 - alpha) * (current + eta * change) + alpha * (clean + eta * change_clean)).clamp(0, 1)
        if model(current).argmax().item() != label:
            wrong.append(current)
            current = clean + beta * (current - clean)
    return wrong


@NORMS
@TARGETS
@pytest.mark.parametrize("settings", [{}, {"alpha_max": 0.01, "eta": 1.6, "beta": 0.98}], ids=["paper", "far"])
def test_the_first_steps_equal_a_naive_walk(norm, targets, settings):
    model, clean = Net(), images(4)
    label = truth(model, clean)
    found = fab(norm, steps=4, targets=targets, final_search=0, engine=Engine(fold=False), **settings)(
        model, clean, label
    )
    for sample in range(4):
        one, true = clean[sample : sample + 1], label[sample].item()
        order = [k for k in model(one)[0].argsort(descending=True).tolist() if k != true]
        walks = [order] if targets is None else [[target] for target in order[:3]]
        wrong = [image for others in walks for image in naive_walk(model, one, true, norm, 4, others, **settings)]
        smallest = min(wrong, key=lambda image: sizes(norm, image, one).item())
        assert torch.allclose(found[sample], smallest[0], rtol=0, atol=1e-5 if norm == "l2" else 1e-9)


def test_the_final_search_only_shortens():
    model, clean = Net(), images(16)
    label = truth(model, clean)
    plain, searched = (
        next(fab(steps=4 + extra, final_search=looks).attempts(model, clean, label))
        for looks, extra in ((0, 0), (3, 2))
    )
    before, after = sizes("linf", plain.image, clean), sizes("linf", searched.image, clean)
    assert (after <= before).all()
    assert (after < 0.999 * before).double().mean() > 0.5
    assert (searched.margin < 0).all()


# --- What it costs, and who leaves


@NORMS
@TARGETS
def test_the_search_for_the_smallest_takes_two_forwards_a_step_and_a_backward_per_class(norm, targets):
    model, clean = Passes(Net()), images()
    clean[:, 0, 0, 0] = INDEX.double() / 100
    label = truth(model, clean)
    model.forwards.clear()
    attack = fab(norm, steps=10, targets=targets, engine=Engine(fold=False))
    attempt = next(attack.attempts(model, clean, label, INDEX))
    walks, backwards = (1, 4) if targets is None else (3, 1)
    expected = walks * 10 - 2, 2 * (walks * 10 - 2) + 1 + 3
    assert attempt.forwards.tolist() == [expected[1]] * 6
    assert attempt.backwards.tolist() == [expected[0] * backwards] * 6
    assert model.forwards == Counter(dict.fromkeys(INDEX.tolist(), expected[1]))
    assert model.backwards == Counter(dict.fromkeys(INDEX.tolist(), expected[0] * backwards))
    assert attempt.forwards.max() <= attack.passes


@NORMS
@TARGETS
def test_a_sample_leaves_as_soon_as_a_wrong_image_lies_within_epsilon(norm, targets):
    model, clean = Net(), images(16)
    label = truth(model, clean)
    least_size = sizes(norm, fab(norm, targets=targets)(model, clean, label), clean)
    epsilon = 1.02 * least_size.median().item()
    attempt = next(fab(norm, epsilon, targets=targets, stop_inside=True).attempts(model, clean, label))
    inside = attempt.margin < 0
    assert torch.equal(inside, least_size <= epsilon)
    assert (attempt.forwards[inside] < attempt.forwards[~inside].min()).all()
    assert (truth(model, attempt.image)[inside] != label[inside]).all()
    assert attempt.margin[~inside].isnan().all()
    assert torch.allclose(sizes(norm, attempt.image, clean)[~inside], torch.tensor(epsilon).double(), rtol=0.2)


@TARGETS
def test_images_that_are_wrong_already_cost_one_look(targets):
    model, clean = Net(), images()
    label = (truth(model, clean) + 1) % 5
    attempt = next(fab(targets=targets, stop_inside=False).attempts(model, clean, label))
    assert torch.equal(attempt.image, clean)
    assert attempt.forwards.tolist() == [1] * 6
    assert attempt.backwards.tolist() == [0] * 6
    assert (attempt.margin < 0).all()


@NORMS
@TARGETS
@pytest.mark.parametrize("stop_inside", [False, True])
def test_results_depend_neither_on_batch_nor_on_order(norm, targets, stop_inside):
    model, clean, order = Net(), images(), torch.tensor([4, 0, 5, 2, 1, 3])
    label = truth(model, clean)
    epsilon = {"linf": 0.05, "l2": 0.2, "l1": 0.5}[norm] if stop_inside else None
    attack = fab(norm, epsilon, targets=targets, stop_inside=stop_inside, restarts=2)
    together = attack(model, clean, label, INDEX)
    shuffled = attack(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(together[order], shuffled, rtol=0, atol=1e-10)
    for sample in range(6):
        one = slice(sample, sample + 1)
        assert torch.allclose(together[one], attack(model, clean[one], label[one], INDEX[one]), rtol=0, atol=1e-10)


def test_a_later_restart_begins_within_half_the_radius():
    seen = []
    model, clean = Linear(bias=1000.0), images(low=0.4, high=0.6)
    label = torch.zeros(6, dtype=torch.int64)
    attack = fab(epsilon=0.1, steps=1, restarts=2, final_search=0)
    list(attack.attempts(lambda image: seen.append(image.detach()) or model(image), clean, label, INDEX))
    assert torch.equal(seen[1], clean)
    start = (seen[4] - clean).abs().flatten(1).amax(1)  # after clean, clean, step, clean
    assert ((start > 0.04) & (start <= 0.05)).all()


# --- Odd inputs


@NORMS
@TARGETS
def test_epsilon_zero_gives_the_clean_image_back(norm, targets):
    model, clean = Net(), images()
    label = truth(model, clean)
    assert torch.equal(fab(norm, 0, targets=targets, steps=2)(model, clean, label), clean)


@NORMS
def test_two_classes_one_channel_and_more_targets_than_classes_work(norm):
    model, clean = Linear(channels=1), images(channels=1)
    model.bias = -model.score(clean).detach().mean()
    label = truth(model, clean)
    found = fab(norm, targets=9, steps=4)(model, clean, label)
    assert (truth(model, found) != label).all()


@NORMS
def test_a_model_without_gradients_leaves_the_clean_image(norm):
    clean = images()
    attempt = next(fab(norm, steps=2).attempts(lambda image: image.detach().flatten(1)[:, :2] * 0, clean, LABEL * 0))
    assert torch.equal(attempt.image, clean)
    assert attempt.dead_gradient.all()


@NORMS
def test_float32_images_stay_in_ball_and_box(norm):
    model, clean = Net().float(), images(32).float()
    epsilon = {"linf": 0.01, "l2": 0.05, "l1": 0.1}[norm]
    attack = fab(norm, epsilon, steps=4)
    found = attack(model, clean, truth(model, clean))
    attack.threat.check(found, clean)
    assert found.dtype == torch.float32


@NORMS
def test_whoever_is_told_fooled_on_a_folded_model_is_fooled_though_logits_are_large(norm):
    net = Net()
    model = nn.Sequential(net[0], nn.BatchNorm2d(8).double().eval(), *list(net)[1:])
    model[-1].bias.data -= 3000.0  # margins of the order 1 on logits of the order 3000
    clean = images()
    label = truth(model, clean)
    attempt = next(fab(norm).attempts(model, clean, label))
    assert (attempt.margin < 0).all()
    assert (truth(model, attempt.image) != label).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"targets": 0}, "targets must be >= 1 or null, got 0"),
        ({"final_search": -1}, "final_search must be >= 0, got -1"),
        ({"alpha_max": 1.5}, r"alpha_max must be in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"beta must be in \[0, 1\], got -0.1"),
        ({"eta": 0.9}, "eta must be >= 1, got 0.9"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        fab(**options)


def test_the_description_can_be_stored():
    described = json.loads(json.dumps(fab("l2", "0.5", targets=9).describe()))
    assert described["norm"] == "l2"
    assert described["epsilon"] == "0.5"
    assert described["objective"] == "targeted_boundary"


@NORMS
def test_it_is_no_weaker_than_adversarial_library(norm):
    library = pytest.importorskip("adv_lib.attacks.fast_adaptive_boundary")
    model, clean = Net().float(), images(32).float()
    label = truth(model, clean)
    theirs = library.fab(model, clean, label, norm=float("inf") if norm == "linf" else int(norm[1]), n_iter=20)
    ours = fab(norm, steps=20)(model, clean, label)
    assert (sizes(norm, ours, clean) <= 1.01 * sizes(norm, theirs, clean)).all()
