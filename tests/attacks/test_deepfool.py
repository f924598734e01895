import json

import pytest
import torch
from test_fab import sizes, truth
from test_gradient import INDEX, LABEL, Linear, Net, images, margins
from torch import nn

from robustfg.attacks import L1, L2, DeepFool, Engine, Linf
from robustfg.core.errors import UserError

KINDS = {"linf": Linf, "l2": L2}
NORMS = pytest.mark.parametrize("norm", KINDS)
EXACT = Engine(fold=False)


def deepfool(norm="l2", epsilon=None, **options):
    return DeepFool(
        threat=KINDS[norm](epsilon={"linf": 1, "l2": 1000}[norm] if epsilon is None else epsilon), **options
    )


@NORMS
@pytest.mark.parametrize("overshoot", [0.02, 0.3])
def test_on_a_linear_model_one_step_goes_over_the_boundary_by_the_overshoot(norm, overshoot):
    model, clean = Linear(), images(low=0.4, high=0.6)
    model.bias = -model.score(clean).detach().mean()
    label, weight = truth(model, clean), model.weight.detach()
    score = model.score(clean).detach()
    attempt = next(deepfool(norm, overshoot=overshoot, engine=EXACT).attempts(model, clean, label, INDEX))
    direction = weight.sign() if norm == "linf" else weight / weight.norm()
    distance = score.abs() / (weight.abs().sum() if norm == "linf" else weight.norm())
    step = (1 + overshoot) * (distance + 1e-4) * -score.sign()
    assert torch.allclose(attempt.image, clean + step[:, None, None, None] * direction, rtol=0, atol=1e-12)
    assert attempt.forwards.tolist() == [2] * 6
    assert attempt.backwards.tolist() == [1] * 6


def naive(model, clean, label, norm, classes, overshoot=0.02, steps=50):
    """Every image of algorithm 2 for one sample."""
    order = [k for k in model(clean)[0].argsort(descending=True).tolist() if k != label][: classes - 1]
    seen = [clean]
    while len(seen) <= steps and model(seen[-1]).argmax().item() == label:
        image = seen[-1].clone().requires_grad_()
        logits = model(image)[0]
        planes = []
        for other in order:
            (normal,) = torch.autograd.grad(logits[other] - logits[label], image, retain_graph=True)
            length = normal.abs().sum() if norm == "linf" else normal.square().sum().sqrt()
            unit = normal.sign() if norm == "linf" else normal / length
            planes.append((((logits[label] - logits[other]) / length).item(), unit))
        distance, unit = min(planes, key=lambda plane: plane[0])
        seen.append((seen[-1] + (1 + overshoot) * (distance + 1e-4) * unit).clamp(0, 1))
    return seen


@NORMS
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_result_and_its_cost_equal_a_naive_run(norm, classes):
    model, clean = Net(), images(8)
    label = truth(model, clean)
    attempt = next(deepfool(norm, classes=classes, engine=EXACT).attempts(model, clean, label))
    for sample in range(8):
        seen = naive(model, clean[sample : sample + 1], label[sample].item(), norm, classes)
        assert torch.allclose(attempt.image[sample], seen[-1][0], rtol=0, atol=1e-10)
        assert attempt.forwards[sample].item() == len(seen) == attempt.first_success[sample].item() + 1
        assert attempt.backwards[sample].item() == (len(seen) - 1) * (min(classes, 5) - 1)
    assert len(set(attempt.forwards.tolist())) > 1  # some left before others


@NORMS
def test_a_first_wrong_image_outside_epsilon_ends_at_its_projection(norm):
    model, clean = Net(), images(8)
    label = truth(model, clean)
    free = deepfool(norm)(model, clean, label)
    size = sizes(norm, free, clean)
    epsilon = size.median().item()
    attack = deepfool(norm, epsilon)
    attempt = next(attack.attempts(model, clean, label))
    inside = size <= epsilon
    assert torch.equal(
        attempt.image, torch.where(inside[:, None, None, None], free, attack.threat.project(free, clean))
    )
    assert (attempt.margin[inside] < 0).all()
    assert attempt.margin[~inside].isnan().all()
    assert inside.any()
    assert not inside.all()


def test_a_model_that_is_never_fooled_takes_all_steps():
    model, clean = Linear(bias=1000.0), images()
    attempt = next(deepfool("linf", steps=3, engine=EXACT).attempts(model, clean, LABEL * 0, INDEX))
    assert attempt.forwards.tolist() == [4] * 6
    assert attempt.backwards.tolist() == [3] * 6
    assert attempt.margin.isnan().all()


def test_wrong_images_cost_one_look():
    model, clean = Net(), images()
    label = (truth(model, clean) + 1) % 5
    attempt = next(deepfool().attempts(model, clean, label))
    assert torch.equal(attempt.image, clean)
    assert attempt.forwards.tolist() == [1] * 6
    assert attempt.backwards.tolist() == [0] * 6


@NORMS
def test_results_depend_neither_on_batch_nor_on_order(norm):
    model, clean, order = Net(), images(), torch.tensor([4, 0, 5, 2, 1, 3])
    label = truth(model, clean)
    together = deepfool(norm)(model, clean, label)
    assert torch.allclose(together[order], deepfool(norm)(model, clean[order], label[order]), rtol=0, atol=1e-10)
    for sample in range(6):
        one = slice(sample, sample + 1)
        assert torch.allclose(together[one], deepfool(norm)(model, clean[one], label[one]), rtol=0, atol=1e-10)


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_without_gradients_leaves_the_clean_image(norm, dtype):
    clean = images().to(dtype)

    def flat(image):
        assert image.isfinite().all()
        return torch.stack([image.flatten(1).sum(1) * 0 + 1, image.flatten(1).sum(1) * 0], 1)

    attempt = next(deepfool(norm, steps=3).attempts(flat, clean, LABEL * 0))
    assert torch.equal(attempt.image, clean)
    assert attempt.dead_gradient.all()


@NORMS
def test_whoever_is_told_fooled_on_a_folded_model_is_fooled_though_logits_are_large(norm):
    net = Net()
    model = nn.Sequential(net[0], nn.BatchNorm2d(8).double().eval(), *list(net)[1:])
    model[-1].bias.data -= 3000.0  # margins of the order 1 on logits of the order 3000
    clean = images()
    label = truth(model, clean)
    attempt = next(deepfool(norm).attempts(model, clean, label))
    assert (attempt.margin < 0).all()
    assert (margins(model, attempt.image, label) < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"overshoot": -0.1}, "overshoot must be >= 0, got -0.1"),
        ({"classes": 1}, "classes must be >= 2, got 1"),
        ({"restarts": 2}, "restarts must be 1, got 2"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        deepfool(**options)


def test_l1_is_refused():
    with pytest.raises(UserError, match="DeepFool needs an l2 or l-inf threat, got L1"):
        DeepFool(threat=L1(epsilon=12))


def test_the_description_can_be_stored():
    described = json.loads(json.dumps(deepfool("linf", "8/255").describe()))
    assert described["epsilon"] == "8/255"
    assert {"norm", "steps", "restarts", "objective", "seed"} <= set(described)


@NORMS
def test_it_ends_where_adversarial_library_ends(norm):
    library = pytest.importorskip("adv_lib.attacks")
    model, clean = Net().float(), images(32).float()
    label = truth(model, clean)
    theirs = library.df(model, clean, label, steps=50, norm=float("inf") if norm == "linf" else 2)
    assert torch.allclose(deepfool(norm)(model, clean, label), theirs, rtol=0, atol=1e-4)
