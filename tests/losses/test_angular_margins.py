"""CosFace, ArcFace and large-margin softmax."""

import math

import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import ArcFace, CosFace, LargeMarginSoftmax
from robustfg.losses.large_margin_softmax import psi

ALL = pytest.mark.parametrize("kind", [ArcFace, CosFace, LargeMarginSoftmax])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(8, 5, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    return feature_map, torch.tensor([0, 3, 2, 2, 1, 0, 3, 1])


def head(kind, **options):
    torch.manual_seed(0)
    return kind(channels=5, num_classes=4, **options).double()


def angles(embedding, weight):
    """Between every feature and every class weight, one pair after the other."""
    return torch.stack([
        torch.stack([torch.arccos(x @ w / (x.norm() * w.norm())) for w in weight]) for x in embedding
    ])  # fmt: skip


def cross_entropy(logits, label):
    return -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(len(label)), label].mean()


@pytest.mark.parametrize("margin", [0.4, 0.0])
def test_cosface_takes_the_margin_off_the_true_cosine(batch, margin):
    feature_map, label = batch
    module = head(CosFace, scale=6.0, margin=margin)
    output = module(feature_map)
    logits = 6 * angles(feature_map.mean((2, 3)), module.weight).cos()
    torch.testing.assert_close(output.logits, logits)
    narrowed = logits - 6 * margin * F.one_hot(label, 4)
    torch.testing.assert_close(module.loss(output, label)["loss"], cross_entropy(narrowed, label))


@pytest.mark.parametrize("margin", [0.5, 1.2, 0.0])
def test_arcface_adds_the_margin_to_the_true_angle_up_to_pi(batch, margin):
    feature_map, label = batch
    module = head(ArcFace, scale=6.0, margin=margin)
    theta = angles(feature_map.mean((2, 3)), module.weight)
    logits = theta.cos()
    for row, y in enumerate(label):
        beyond = theta[row, y] + margin > math.pi
        logits[row, y] = (
            theta[row, y].cos() - margin * math.sin(margin) if beyond else torch.cos(theta[row, y] + margin)
        )
    torch.testing.assert_close(module.loss(module(feature_map), label)["loss"], cross_entropy(6 * logits, label))


def test_some_angles_of_the_test_above_are_beyond_pi(batch):
    theta = angles(batch[0].mean((2, 3)), head(ArcFace).weight)[torch.arange(8), batch[1]]
    assert 0 < int((theta + 1.2 > math.pi).sum()) < 8


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
def test_arcface_keeps_falling_over_the_whole_range_of_angles(margin):
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    assert (head(ArcFace, margin=margin).narrowed(theta.cos()).diff() < 0).all()


@pytest.mark.parametrize("kind", [ArcFace, CosFace, LargeMarginSoftmax])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_feature_exactly_on_its_weight_or_opposite_has_a_finite_gradient(kind, sign, dtype):
    module = head(kind).to(dtype)
    module.epoch = 0.0
    weight = module.weight if hasattr(module, "weight") else module.classifier.weight
    feature = (sign * 3 * weight.detach()[:1, :, None, None]).requires_grad_()
    module.loss(module(feature), torch.tensor([0]))["loss"].backward()
    assert feature.grad.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("multiple", [1, 2, 3, 4])
def test_psi_is_the_papers_piecewise_function(multiple):
    for theta in torch.linspace(0.001, math.pi - 0.001, 200, dtype=torch.float64):
        j = math.floor(multiple * theta / math.pi)
        expected = (-1) ** j * math.cos(multiple * theta) - 2 * j
        assert psi(theta.cos(), multiple).item() == pytest.approx(expected, abs=1e-9)
    whole = psi(torch.linspace(0, math.pi, 999, dtype=torch.float64).cos(), multiple)
    assert (whole.diff() < 0).all()
    assert whole.diff().abs().max() < 0.02  # continuous
    assert (whole[0].item(), whole[-1].item()) == pytest.approx((1, 1 - 2 * multiple))


@pytest.mark.parametrize(("multiple", "epoch"), [(2, 3.0), (4, 0.0), (3, math.inf)])
def test_large_margin_softmax_is_its_formula(batch, multiple, epoch):
    feature_map, label = batch
    module = head(LargeMarginSoftmax, multiple=multiple, lambda_start=5, lambda_power=2, annealing=0.5, lambda_min=0.1)
    module.epoch = epoch
    embedding, weight = feature_map.mean((2, 3)), module.classifier.weight
    ease = max(0.1, 5 / (1 + 0.5 * epoch) ** 2)
    logits = embedding @ weight.t()
    theta, expected = angles(embedding, weight), logits.clone()
    for row, y in enumerate(label):
        j = math.floor(multiple * theta[row, y].item() / math.pi)
        length = embedding[row].norm() * weight[y].norm()
        bent = length * ((-1) ** j * torch.cos(multiple * theta[row, y]) - 2 * j)
        expected[row, y] = (ease * logits[row, y] + bent) / (1 + ease)
    output = module(feature_map)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(module.loss(output, label)["loss"], cross_entropy(expected, label))


def test_the_margin_of_large_margin_softmax_sets_in_as_its_lambda_falls():
    module = head(LargeMarginSoftmax)
    assert module.ease(0) == 1000
    assert module.ease(10) == pytest.approx(1000 * 1.078**-45)
    assert module.ease(math.inf) == 0
    assert head(LargeMarginSoftmax, lambda_min=5).ease(math.inf) == 5
    assert head(LargeMarginSoftmax, lambda_start=0).ease(0) == 0


@ALL
def test_gradients_are_those_of_finite_differences(batch, kind):
    feature_map, label = batch
    module = head(kind)
    module.epoch = 30.0
    assert torch.autograd.gradcheck(lambda features: module.loss(module(features), label)["loss"], (feature_map,))


@ALL
def test_a_margin_raises_the_loss_and_leaves_the_logits_alone(batch, kind):
    feature_map, label = batch
    none = {"multiple": 1} if kind is LargeMarginSoftmax else {"margin": 0.0}
    plain, module = head(kind, **none), head(kind)
    assert torch.equal(plain(feature_map).logits, module(feature_map).logits)
    plainly = F.cross_entropy(plain(feature_map).logits, label)
    torch.testing.assert_close(plain.loss(plain(feature_map), label)["loss"], plainly)
    assert module.loss(module(feature_map), label)["loss"] > plainly


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
def test_anomaly_is_the_cosine_distance_to_the_predicted_weight(batch, kind):
    module = head(kind)
    cosine = angles(batch[0].mean((2, 3)), module.weight).cos()
    torch.testing.assert_close(module.anomaly(module(batch[0])), 1 - cosine.max(1).values)


def test_anomaly_of_large_margin_softmax_is_minus_the_largest_probability(batch):
    module = head(LargeMarginSoftmax)
    output = module(batch[0])
    torch.testing.assert_close(module.anomaly(output), -output.logits.softmax(1).max(1).values)


@pytest.mark.parametrize("kind", [ArcFace, CosFace])
def test_cosines_are_never_taken_in_half_precision(kind):
    module, feature_map = head(kind).float(), torch.randn(3, 5, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(feature_map)
    torch.testing.assert_close(output.logits, module(feature_map).logits)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(CosFace, {"scale": 0}, r"loss\.scale must be > 0, got 0"),
     (CosFace, {"margin": -0.1}, r"loss\.margin must be in \[0, 2\], got -0.1"),
     (ArcFace, {"margin": 2}, r"loss\.margin must be in \[0, pi/2\], got 2"),
     (LargeMarginSoftmax, {"multiple": 0}, r"loss\.multiple must be a whole number >= 1, got 0"),
     (LargeMarginSoftmax, {"lambda_min": -1}, r"loss\.lambda_min must be >= 0, got -1"),
     (LargeMarginSoftmax, {"annealing": 0}, r"loss\.annealing must be > 0, got 0")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(kind, options, message):
    with pytest.raises(UserError, match=message):
        head(kind, **options)
