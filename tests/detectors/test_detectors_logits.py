import math

import pytest
import torch

from robustfg.detectors import Energy, Likelihood, MaxLogit, MaxSoftmax
from robustfg.errors import UserError
from robustfg.losses import GaussianMixture
from robustfg.types import Output


def of(logits):
    return Output(logits=logits, embedding=logits)


def test_scores_are_their_formulas():
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    for row, likelihood, logit, energy, odds in zip(
        logits.tolist(),
        Likelihood().score(of(logits)).tolist(),
        MaxLogit().score(of(logits)).tolist(),
        Energy(temperature=2.0).score(of(logits)).tolist(),
        MaxSoftmax(temperature=2.0).score(of(logits)).tolist(),
        strict=True,
    ):
        assert likelihood == -2 * max(row)
        assert logit == -max(row)
        assert energy == pytest.approx(-2 * math.log(sum(math.exp(v / 2) for v in row)), rel=1e-12)
        p = math.exp(max(row) / 2) / sum(math.exp(v / 2) for v in row)
        assert odds == pytest.approx(math.log((1 - p) / p), rel=1e-9)


def test_the_gm_heads_likelihood_is_its_squared_distance_to_the_nearest_mean():
    torch.manual_seed(0)
    head = GaussianMixture(channels=7, num_classes=4)
    output = head(torch.randn(6, 7, 2, 2))
    naive = torch.cdist(output.embedding, head.means).square().amin(1)
    torch.testing.assert_close(Likelihood().score(output), naive, rtol=1e-4, atol=1e-5)


def test_the_largest_probability_goes_on_telling_apart_what_rounds_to_one():
    logits = torch.tensor([[40.0, 0.0, 0.0], [60.0, 0.0, 0.0]]).requires_grad_()
    assert (logits.softmax(1).amax(1) == 1).all()
    scores = MaxSoftmax().score(of(logits))
    assert scores[1] < scores[0]
    (gradient,) = torch.autograd.grad(scores.sum(), logits)
    assert gradient[:, 0].tolist() == [-1, -1]


@pytest.mark.parametrize("kind", [Energy, MaxSoftmax])
def test_a_temperature_must_be_positive(kind):
    with pytest.raises(UserError, match="detector.temperature must be > 0, got 0"):
        kind(temperature=0)
