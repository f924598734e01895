import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.detectors.feature_squeezing import FLOOR, log_odds

logit = st.floats(-30, 30, width=32)
rows = st.integers(2, 5).flatmap(lambda k: st.tuples(*[st.lists(logit, min_size=k, max_size=k)] * 2))


@given(rows)
@settings(max_examples=300, deadline=None)
def test_the_distance_is_that_of_the_probabilities(drawn):
    one, other = (torch.tensor([row], dtype=torch.float64) for row in drawn)
    expected = (one.softmax(1) - other.softmax(1)).abs().sum(1)
    found = 2 * log_odds(one, other).sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("scale", [1, 100, 1000])
def test_saturated_probabilities_keep_score_and_gradient_in_single_precision(scale):
    generator = torch.Generator().manual_seed(0)
    one = scale * torch.randn(20, 6, generator=generator)
    other = one + 0.01 * scale * torch.randn(20, 6, generator=generator)
    pairs = [tuple(row.to(dtype).requires_grad_() for row in (one, other)) for dtype in (torch.float32, torch.float64)]
    scores = [log_odds(*pair) for pair in pairs]
    torch.testing.assert_close(scores[0].double(), scores[1], rtol=1e-3, atol=1e-2)
    gradients = [
        torch.cat(torch.autograd.grad(score.sum(), pair), 1).double() for score, pair in zip(scores, pairs, strict=True)
    ]
    assert all(row.abs().max() > 0.5 for row in gradients[0])
    torch.testing.assert_close(*gradients, rtol=5e-2, atol=5e-2)


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    one, other = (4 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(log_odds, (one.requires_grad_(), other.requires_grad_()))


def test_images_that_no_squeezer_changes_have_a_finite_score_and_no_gradient():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    score = log_odds(logits, logits.detach().clone())
    assert score.item() == pytest.approx(FLOOR)
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    assert gradient.isfinite().all()


def test_opposite_certainties_are_told_by_how_certain_they_are():
    logits = torch.tensor([[500.0, 0.0]])
    assert log_odds(logits, logits.flip(1)).item() == pytest.approx(500 - math.log(2))
