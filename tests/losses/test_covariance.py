import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from robustfg.core.errors import UserError
from robustfg.losses import GaussianMixture
from robustfg.losses.covariance import Identity
from robustfg.losses.diagonal_covariance import Diagonal, Isotropic
from robustfg.losses.full_covariance import Full
from robustfg.losses.priors import Given
from robustfg.losses.variances import FLOOR

B, K, D = 7, 4, 3
LABEL = torch.tensor([0, 3, 2, 2, 1, 0, 3])
LEARNED = [(kind, tied) for kind in (Isotropic, Diagonal, Full) for tied in (False, True)]


def made(kind, tied):
    """A covariance far from where it starts."""
    torch.manual_seed(0)
    covariance = kind(num_classes=K, dim=D, tied=tied, initial=0.7, floor=1e-3).double()
    for parameter in covariance.parameters():
        parameter.data = torch.randn_like(parameter)
    return covariance


def mixture(kind=Isotropic, tied=False, **options):
    torch.manual_seed(1)
    module = GaussianMixture(channels=D, num_classes=K, covariance=lambda **sizes: made(kind, tied), **options)
    return module.double()


def densities(module, rows):
    """log N(x; mu_k, Sigma_k) by torch, (B, K)."""
    gaussians = MultivariateNormal(module.means, module.covariance.matrices().expand(K, D, D))
    return gaussians.log_prob(rows[:, None])


@pytest.fixture
def rows():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_logits_and_likelihood_are_the_densities_of_torch(kind, tied, rows):
    frequencies = [4.0, 1.0, 2.0, 3.0]
    module = mixture(kind, tied, priors=lambda **sizes: Given(**sizes, frequencies=frequencies), margin=0.0)
    output, constant = module(rows[:, :, None, None]), D / 2 * math.log(2 * math.pi)
    log_density = densities(module, rows)
    joint = log_density + (torch.tensor(frequencies) / 10).log()
    assert torch.allclose(output.logits, joint + constant, rtol=0, atol=1e-6)  # priors are held in float32
    terms = module.loss(output, LABEL)
    own = log_density.gather(1, LABEL[:, None])
    assert terms["likelihood"].item() == pytest.approx(-own.mean().item() - constant, abs=1e-10)
    assert terms["classification"].item() == pytest.approx(
        torch.nn.functional.cross_entropy(joint, LABEL).item(), abs=1e-6
    )
    assert torch.equal(module.anomaly(output), -2 * output.logits.amax(1))


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_the_margin_stretches_the_true_distance_and_not_the_determinant(kind, tied, rows):
    module = mixture(kind, tied, margin=0.6, likelihood=0.2)
    terms = module.loss(module(rows[:, :, None, None]), LABEL)
    sigma = module.covariance.matrices().expand(K, D, D)
    differences = rows[:, None] - module.means
    mahalanobis = torch.einsum("bki,kij,bkj->bk", differences, sigma.inverse(), differences)
    stretched = torch.where(torch.eye(K, dtype=torch.bool)[LABEL], 1.6 * mahalanobis, mahalanobis)
    log_posterior = (-0.5 * (stretched + sigma.logdet())).log_softmax(1).gather(1, LABEL[:, None])
    assert terms["classification"].item() == pytest.approx(-log_posterior.mean().item(), rel=1e-10)
    assert terms["loss"].item() == pytest.approx((terms["classification"] + 0.2 * terms["likelihood"]).item())


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_as_in_the_caffe_release_the_determinant_is_left_out_of_the_logits_alone(kind, tied, rows):
    module = mixture(kind, tied, margin=0.6, log_determinant=False)
    output = module(rows[:, :, None, None])
    sigma = module.covariance.matrices().expand(K, D, D)
    differences = rows[:, None] - module.means
    half = 0.5 * torch.einsum("bki,kij,bkj->bk", differences, sigma.inverse(), differences)
    assert torch.allclose(output.logits, -half, rtol=0, atol=1e-10)
    expected = (half + 0.5 * sigma.logdet()).gather(1, LABEL[:, None]).mean()
    assert module.loss(output, LABEL)["likelihood"].item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_over_all_classes_the_likelihood_is_the_mean_of_all(kind, tied, rows):
    module = mixture(kind, tied, likelihood_over_all_classes=True)
    constant = D / 2 * math.log(2 * math.pi)
    found = module.loss(module(rows[:, :, None, None]), LABEL)["likelihood"]
    assert found.item() == pytest.approx(-densities(module, rows).mean().item() - constant, abs=1e-10)


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_gradients_are_those_of_finite_differences(kind, tied, rows):
    module = mixture(kind, tied, margin=0.4, likelihood=0.3)
    names, values = zip(*module.named_parameters(), strict=True)

    def loss(rows, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(Whole(module), {f"module.{k}": v for k, v in given.items()}, (rows,))

    assert torch.autograd.gradcheck(loss, (rows.requires_grad_(), *values))


class Whole(torch.nn.Module):
    """Rows to the loss."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, rows):
        return self.module.loss(self.module(rows[:, :, None, None]), LABEL)["loss"]


@pytest.mark.parametrize("kind", [Identity, Isotropic, Diagonal, Full])
def test_untrained_covariances_are_the_identity(kind, rows):
    covariance = kind(num_classes=K, dim=D).double()
    means = torch.randn(K, D, dtype=torch.float64)
    assert torch.allclose(covariance.matrices().double(), torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(covariance.exponents(rows, means), -0.5 * torch.cdist(rows, means).square())


@pytest.mark.parametrize("kind", [Identity, Isotropic, Diagonal, Full])
def test_with_a_tied_covariance_the_head_is_a_linear_layer(kind, rows):
    covariance = Identity(num_classes=K, dim=D) if kind is Identity else made(kind, True)
    means = torch.randn(K, D, dtype=torch.float64)
    weight = covariance.linear(means)
    linear = rows @ weight.t() - 0.5 * (weight * means).sum(1)
    assert torch.allclose(covariance.exponents(rows, means).softmax(1), linear.softmax(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_the_map_of_evidence_is_left_out_where_the_logits_are_not_linear(kind, tied, rows):
    module = mixture(kind, tied)
    feature_map = rows[:, :, None, None]
    assert set(module.evidence(feature_map, module(feature_map))) == ({"cam"} if tied else set())


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
@pytest.mark.parametrize("apart", [1.0, 0.0])
def test_nothing_becomes_nan_where_features_collapse(kind, tied, apart):
    """Features that sit on their means drive every variance to the floor, at a rate far too high."""
    torch.manual_seed(0)
    make = lambda **sizes: kind(**sizes, tied=tied)  # noqa: E731
    module = GaussianMixture(channels=D, num_classes=K, covariance=make, likelihood=1.0)
    module.means.data *= apart
    optimizer = torch.optim.SGD(module.covariance.parameters(), lr=5.0, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        feature_map = module.means.detach()[LABEL][:, :, None, None]
        module.loss(module(feature_map), LABEL)["loss"].backward()
        for parameter in module.parameters():
            assert parameter.grad.isfinite().all()
        optimizer.step()
    determinants = module.covariance.log_determinants()
    assert determinants.max() < D * math.log(2 * FLOOR)  # they did collapse
    assert determinants.min() >= D * math.log(0.999 * FLOOR)
    away = (module.means.detach()[LABEL] + 10).requires_grad_()  # and then everything moves at once
    loss = module.loss(module(away[:, :, None, None]), LABEL)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert away.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_distances_are_never_in_half_precision(kind, tied):
    torch.manual_seed(0)
    module = GaussianMixture(channels=D, num_classes=K, covariance=lambda **sizes: kind(**sizes, tied=tied))
    embedding = torch.full((2, D, 1, 1), 300.0)  # squared length 270,000 is beyond float16
    expected = module(embedding).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = module(embedding).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(("kind", "tied"), LEARNED)
def test_a_covariance_becomes_what_it_is_given(kind, tied):
    covariance, generator = made(kind, tied), torch.Generator().manual_seed(5)
    factor = torch.randn(covariance.count, D, D, generator=generator, dtype=torch.float64)
    given = factor @ factor.transpose(1, 2) + 0.1 * torch.eye(D)
    covariance.become(given if kind is Full else given.diagonal(dim1=1, dim2=2))
    expected = {
        Full: given + (1e-3 + 1e-3 * (0.7 - 1e-3)) * torch.eye(D),  # the floor and a remainder
        Diagonal: torch.diag_embed(given.diagonal(dim1=1, dim2=2)),
        Isotropic: given.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(D),
    }[kind]
    assert torch.allclose(covariance.matrices(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [Isotropic, Diagonal, Full])
def test_impossible_variances_are_refused_by_name(kind):
    with pytest.raises(UserError, match=r"loss.covariance.floor must be > 0, got 0"):
        kind(num_classes=K, dim=D, floor=0)
    with pytest.raises(UserError, match=r"loss.covariance.initial must be > loss.covariance.floor, got 0.1 and 0.1"):
        kind(num_classes=K, dim=D, floor=0.1, initial=0.1)
