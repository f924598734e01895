import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gradient import INDEX, Net, images
from torch import nn

from robustfg.attacks import (
    APGD,
    CrossEntropy,
    GradientAttack,
    KullbackLeibler,
    Linf,
    Margin,
    ScaledCrossEntropy,
    Steepest,
)
from robustfg.core.types import Output, decision_margin

LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=5)


def naive_margin(row, label):
    return row[label] - max(value for place, value in enumerate(row) if place != label)


@settings(deadline=None, max_examples=50)
@given(rows=LOGITS, shift=st.integers(0, 3))
def test_cross_entropy_is_minus_the_log_probability_of_the_true_class(rows, shift):
    label = [(place + shift) % 4 for place in range(len(rows))]
    expected = [math.log(math.fsum(map(math.exp, row))) - row[true] for row, true in zip(rows, label, strict=True)]
    score = CrossEntropy()(torch.tensor(rows, dtype=torch.float64), torch.tensor(label))
    assert score.tolist() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(rows=LOGITS, shift=st.integers(0, 3))
def test_margin_is_the_largest_wrong_logit_minus_the_true_one(rows, shift):
    label = [(place + shift) % 4 for place in range(len(rows))]
    expected = [-naive_margin(row, true) for row, true in zip(rows, label, strict=True)]
    logits = torch.tensor(rows, dtype=torch.float64)
    assert Margin()(logits, torch.tensor(label)).tolist() == expected
    assert decision_margin(logits, torch.tensor(label)).tolist() == [-value for value in expected]


@settings(deadline=None, max_examples=50)
@given(rows=LOGITS)
def test_a_positive_objective_of_the_margin_means_a_wrong_prediction(rows):
    logits, label = torch.tensor(rows, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.int64)
    wrong = [max(row[1:]) > row[0] for row in rows]
    assert (Margin()(logits, label) > 0).tolist() == wrong


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()])
def test_an_output_and_its_logits_score_alike(objective):
    logits, label = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    output = Output(logits=logits, embedding=torch.zeros(5, 2), heads={"other": -logits})
    assert torch.equal(objective(output, label), objective(logits, label))
    assert objective(logits, label).shape == (5,)


def test_margin_of_logits_that_are_all_negative_is_not_zero():
    """As distance heads give them; torchattacks' CW margin is 0 there."""
    logits = torch.tensor([[-5.0, -20.0, -7.0], [-90.0, -80.0, -85.0]], requires_grad=True)
    score = Margin()(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    assert score.tolist() == [-2.0, 10.0]
    assert gradient.tolist() == [[-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("gap", [104.0, 150.0, 1000.0])
def test_float32_cross_entropy_dies_at_a_gap_of_104_and_the_margin_does_not(gap):
    logits = torch.tensor([[gap, 0.0], [0.0, -gap]], requires_grad=True)
    label = torch.tensor([0, 0])
    (saturated,) = torch.autograd.grad(CrossEntropy()(logits, label).sum(), logits)
    (alive,) = torch.autograd.grad(Margin()(logits, label).sum(), logits)
    assert torch.equal(saturated, torch.zeros(2, 2))
    assert alive.tolist() == [[-1.0, 1.0], [-1.0, 1.0]]


def test_float32_cross_entropy_still_has_a_gradient_at_a_gap_of_80():
    logits = torch.tensor([[80.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(CrossEntropy()(logits, torch.tensor([0])).sum(), logits)
    assert gradient[0, 1].item() == pytest.approx(math.exp(-80), rel=1e-4)


class Recorded(nn.Module):
    """Keeps every batch it is asked about."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = Net(), []

    def forward(self, image):
        self.seen.append(image.detach())
        return self.net(image)


def naive_divergence(logits, clean):
    p, q = clean.softmax(1), logits.softmax(1)
    return (p * (p / q).log()).sum(1)


def test_divergence_from_the_clean_prediction_climbs_its_own_gradient_for_those_that_are_left():
    model, clean = Recorded(), images()
    with torch.no_grad():
        logits = model.net(clean)
    label = logits.argmax(1)
    label[1] = (label[1] + 1) % 5  # wrong already: leaves with the first look
    attack = GradientAttack(
        threat=Linf(epsilon=0.02), step=Steepest(size=0.005), steps=3, objective=KullbackLeibler(), random_start=True
    )
    model.seen.clear()
    next(attack.attempts(model, clean, label, INDEX))
    batches = [batch for batch in model.seen if not torch.equal(batch, clean)]
    assert len(model.seen) == len(batches) + 1  # the clean logits are asked for once
    assert len(batches[0]) == 6
    assert len(batches[1]) == 5
    rest = torch.arange(6)[torch.arange(6) != 1]
    for before, after, rows in ((batches[0][rest], batches[1], rest), (batches[1], batches[2], rest)):
        leaf = before.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(naive_divergence(model.net(leaf), logits[rows]).sum(), leaf)
        stepped = (before + 0.005 * gradient.sign()).clamp(clean[rows] - 0.02, clean[rows] + 0.02).clamp(0, 1)
        assert torch.allclose(after, stepped, rtol=0, atol=1e-12)


def test_divergence_takes_given_clean_logits_and_serves_apgd():
    model, clean = Recorded(), images()
    with torch.no_grad():
        logits = model.net(clean)
    attack = APGD(threat=Linf(epsilon=0.1), steps=10, objective=KullbackLeibler())
    found = next(attack.attempts(model, clean, logits.argmax(1), INDEX, logits=logits))
    assert not any(torch.equal(batch, clean) for batch in model.seen)
    assert (model.net(found.image).argmax(1) != logits.argmax(1)).any()


@settings(deadline=None, max_examples=50)
@given(rows=LOGITS)
def test_divergence_is_the_sum_of_p_times_the_log_of_p_over_q(rows):
    logits = torch.tensor(rows, dtype=torch.float64)
    clean = logits.flip(1) / 2
    assert torch.allclose(KullbackLeibler()(logits, clean), naive_divergence(logits, clean), atol=1e-9)


@pytest.mark.parametrize("gap", [10.0, 3.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e6])
def test_scaled_cross_entropy_is_that_of_logits_whose_gap_is_given_and_so_is_its_gradient(gap, spread):
    logits = (
        spread * torch.tensor([[0.3, 1.0, -1.0, 0.2], [2.0, 0.5, 0.1, 0.4]], dtype=torch.float64)
    ).requires_grad_()
    label = torch.tensor([1, 0])
    score = ScaledCrossEntropy(gap=gap)(logits, label)
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    for row, true, value, slope in zip(logits.tolist(), label.tolist(), score.tolist(), gradient.tolist(), strict=True):
        factor = gap / (max(row) - min(row))
        weights = [math.exp(factor * (z - row[true])) for z in row]
        assert value == pytest.approx(math.log(sum(weights)), rel=1e-9)
        expected = [factor * (w / sum(weights) - (place == true)) for place, w in enumerate(weights)]
        assert slope == pytest.approx(expected, rel=1e-9)


def test_scaled_cross_entropy_has_a_gradient_where_float32_cross_entropy_has_none():
    for objective, dead in ((CrossEntropy(), True), (ScaledCrossEntropy(), False)):
        logits = torch.tensor([[200.0, 0.0, 5.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(objective(logits, torch.tensor([0])).sum(), logits)
        assert (gradient == 0).all() == dead
    same = torch.ones(1, 3, requires_grad=True)
    assert ScaledCrossEntropy()(same, torch.tensor([0])).item() == pytest.approx(math.log(3))
