import copy
import math
from functools import partial

import pytest
import torch

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors import Energy, Likelihood, MaxLogit, MaxSoftmax
from robustfg.losses import GaussianMixture
from robustfg.losses.covariance import Identity
from robustfg.losses.diagonal_covariance import Diagonal, Isotropic
from robustfg.losses.full_covariance import Full

pytestmark = pytest.mark.numeric


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


COVARIANCES = {
    "identity": Identity,
    "tied isotropic": partial(Isotropic, tied=True, initial=0.3),
    "tied diagonal": partial(Diagonal, tied=True, initial=0.3),
    "tied full": partial(Full, tied=True, initial=0.3),
    "isotropic": partial(Isotropic, initial=0.3),
    "diagonal": partial(Diagonal, initial=0.3),
    "full": partial(Full, initial=0.3),
}


@pytest.mark.parametrize("covariance", COVARIANCES.values(), ids=COVARIANCES)
def test_features_of_length_ten_thousand_keep_distances_of_a_hundredth(covariance):
    generator, dim = torch.Generator().manual_seed(0), 16
    centre = 1e4 / dim**0.5
    head = GaussianMixture(channels=dim, num_classes=5, covariance=covariance).eval()
    for parameter in head.covariance.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    head.means.data = centre + 1e-2 * torch.randn(5, dim, generator=generator)
    feature = centre + 1e-2 * torch.randn(9, dim, generator=generator)
    told = []
    for dtype in (torch.float32, torch.float64):
        module, rows = copy.deepcopy(head).to(dtype), feature.to(dtype).requires_grad_()
        output = module(rows[:, :, None, None])
        nearest = output.logits.argmax(1).tolist()
        scores = Likelihood().score(output), module.anomaly(output)
        gradients = [torch.autograd.grad(score.sum(), rows, retain_graph=True)[0] for score in scores]
        told.append([value.detach().double() for value in (*scores, *gradients)])
        naive = torch.stack([_distance(head, row, k) for row, k in zip(feature, nearest, strict=True)])
        for score in scores:
            torch.testing.assert_close(score.double(), naive, rtol=1e-4, atol=1e-5)
    for single, double in zip(*told, strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-4 * float(double.abs().max()))


def _distance(head, row, k):
    """(x - mu_k)' Sigma_k^-1 (x - mu_k) + log|Sigma_k| in double precision."""
    matrices = head.covariance.matrices().double()
    matrix, difference = matrices[k if len(matrices) > 1 else 0], row.double() - head.means[k].double()
    return difference @ torch.linalg.solve(matrix, difference) + torch.logdet(matrix)
