import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.attacks import CrossEntropy, Margin, ScaledCrossEntropy
from robustfg.types import Output, decision_margin

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
