import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import GaussianMixture
from robustfg.losses.gaussian import gaussian_logits, margin_cross_entropy

pytestmark = pytest.mark.numeric

GOLDEN = np.load(Path(__file__).parent.parent / "data" / "gm_official.npz")
SETTINGS = [(0.3, 0.1), (1.0, 0.1), (0.0, 0.0)]


def mixture(means, **options):
    module = GaussianMixture(channels=means.shape[1], num_classes=len(means), **options).to(means.dtype)
    module.means.data.copy_(means)
    return module


def as_map(embedding):
    return embedding[:, :, None, None]


@pytest.fixture
def toy():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    means = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return embedding, means, torch.tensor([0, 4, 2, 2, 1, 3, 0])


def test_logits_equal_the_authors():
    features, means = torch.from_numpy(GOLDEN["features"]), torch.from_numpy(GOLDEN["means"])
    assert np.allclose(gaussian_logits(features, means).numpy(), GOLDEN["logits"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("alpha", "weight"), SETTINGS)
@pytest.mark.parametrize(("release", "over_all"), [("cifar", False), ("mnist", True)])
def test_released_variants_equal_the_authors_values_and_gradients(release, over_all, alpha, weight):
    golden = {
        key.split("/", 2)[2]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{release}/a{alpha}_l{weight}/")
    }
    features = torch.from_numpy(GOLDEN["features"]).requires_grad_()
    module = mixture(
        torch.from_numpy(GOLDEN["means"]),
        margin=alpha,
        likelihood=weight,
        likelihood_factor=1.0,
        likelihood_over_all_classes=over_all,
    )
    terms = module.loss(module(as_map(features)), torch.from_numpy(GOLDEN["labels"]))
    terms["loss"].backward()
    assert terms["classification"].item() == pytest.approx(golden["ce"].mean(), abs=1e-9)
    assert terms["likelihood"].item() == pytest.approx(golden["lkd"].mean(), abs=1e-9)
    assert terms["loss"].item() == pytest.approx(float(golden["total"]), abs=1e-9)
    assert np.allclose(features.grad.numpy(), golden["grad_features"], rtol=0, atol=1e-9)
    assert np.allclose(module.means.grad.numpy(), golden["grad_means"], rtol=0, atol=1e-9)


def test_the_papers_formula_is_the_default(toy):
    embedding, means, label = toy
    terms = mixture(means, margin=0.4, likelihood=0.2).loss(mixture(means)(as_map(embedding)), label)
    distance = 0.5 * torch.cdist(embedding, means).square()
    rows = torch.arange(len(label))
    density = torch.exp(-distance)
    scaled = torch.exp(-1.4 * distance[rows, label])
    posterior = scaled / (scaled + density.sum(1) - density[rows, label])
    assert terms["classification"].item() == pytest.approx(-posterior.log().mean().item(), abs=1e-12)
    assert terms["likelihood"].item() == pytest.approx(distance[rows, label].mean().item(), abs=1e-12)
    gaussian = torch.distributions.MultivariateNormal(means[label], torch.eye(4, dtype=torch.float64))
    log_density = gaussian.log_prob(embedding).mean() + 2 * math.log(2 * math.pi)
    assert terms["likelihood"].item() == pytest.approx(-log_density.item(), abs=1e-12)


def test_without_margin_the_head_is_a_linear_layer(toy):
    embedding, means, label = toy
    linear = F.linear(embedding, means, -0.5 * means.square().sum(1))
    logits = gaussian_logits(embedding, means)
    assert torch.allclose(logits.softmax(1), linear.softmax(1), atol=1e-12, rtol=0)
    assert torch.allclose(margin_cross_entropy(logits, label, 0.0), F.cross_entropy(linear, label), atol=1e-12, rtol=0)


def test_gradients_are_those_of_finite_differences(toy):
    embedding, means, label = (tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in toy)
    assert torch.autograd.gradcheck(gaussian_logits, (embedding, means))
    assert torch.autograd.gradgradcheck(gaussian_logits, (embedding, means))
    logits = (-torch.rand(7, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: margin_cross_entropy(values, label, 0.7), (logits,))


def test_loss_stays_finite_when_distances_are_huge():
    module = mixture(torch.tensor([[0.0, 0.0], [300.0, 0.0]]), margin=0.3)
    embedding = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    terms = module.loss(module(as_map(embedding)), torch.tensor([0, 1]))
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    assert torch.isfinite(embedding.grad).all()


def test_autocast_does_not_reach_the_distances():
    module = GaussianMixture(channels=8, num_classes=3)
    embedding = as_map(torch.full((2, 8), 300.0))  # squared length 720,000 is beyond float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(embedding)
    assert output.logits.dtype == torch.float32
    assert torch.allclose(output.logits, gaussian_logits(embedding.flatten(1), module.means))


def test_distances_far_from_the_origin_keep_their_digits():
    """Single precision: squares of 1e8 would leave nothing of means that are 0.1 apart."""
    generator = torch.Generator().manual_seed(1)
    far = 1e4 / 8**0.5
    means = far + 0.1 * torch.randn(5, 8, generator=generator)
    embedding = (far + 0.1 * torch.randn(9, 8, generator=generator)).requires_grad_()
    found = gaussian_logits(embedding, means)
    exact = -0.5 * (embedding.double()[:, None] - means.double()).square().sum(2)
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-3)
    weight = torch.randn(9, 5, generator=generator)
    gradients = [torch.autograd.grad((weight * logits).sum(), embedding)[0] for logits in (found, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=5e-3)


def test_second_derivatives_are_those_of_finite_differences(toy):
    embedding, means, _ = toy
    assert torch.autograd.gradgradcheck(gaussian_logits, (embedding.requires_grad_(), means.requires_grad_()))


def test_anomaly_is_the_squared_distance_under_the_predicted_class(toy):
    embedding, means, _ = toy
    module = mixture(means)
    assert torch.allclose(module.anomaly(module(as_map(embedding))), torch.cdist(embedding, means).square().amin(1))


def test_margin_and_likelihood_ramp_linearly():
    module = GaussianMixture(
        channels=4, num_classes=3, margin=1.0, margin_start=0.1, likelihood=0.1, likelihood_start=0.01, ramp_epochs=5
    )
    assert module.margin.at(0) == pytest.approx(0.1)
    assert module.likelihood.at(0) == pytest.approx(0.001)
    assert module.margin.at(2.5) == pytest.approx(0.55)
    assert module.margin.at(5) == module.margin.at(float("inf")) == 1.0
    module.epoch = 0.0
    output = module(torch.randn(6, 4, 1, 1))
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    terms = module.loss(output, label)
    expected = margin_cross_entropy(output.logits, label, 0.1) + 0.001 * terms["likelihood"]
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_means_start_at_the_released_scale():
    torch.manual_seed(0)
    means = GaussianMixture(channels=64, num_classes=4000).means
    assert means.square().sum(1).mean().item() == pytest.approx(2 / 3, rel=0.02)


def test_embedding_layer_sets_the_dimension():
    module = GaussianMixture(channels=16, num_classes=3, embedding_dim=2)
    output = module(torch.randn(5, 16, 3, 3))
    assert output.embedding.shape == (5, 2)
    assert module.means.shape == (3, 2)


@pytest.mark.parametrize("option", ["margin", "likelihood", "ramp_epochs"])
def test_negative_options_are_refused_by_name(option):
    with pytest.raises(UserError, match=f"loss.{option} must be >= 0"):
        GaussianMixture(channels=4, num_classes=3, **{option: -1.0})


def test_identity_logits_are_a_linear_layers_up_to_a_constant_of_the_sample(toy):
    embedding, means, _ = toy
    logits = mixture(means)(as_map(embedding)).logits
    shift = logits - F.linear(embedding, means, -0.5 * means.square().sum(1))
    assert torch.allclose(shift, -0.5 * embedding.square().sum(1, keepdim=True).expand(-1, 5), rtol=0, atol=1e-12)


def test_the_default_head_holds_nothing_but_its_means():
    module = GaussianMixture(channels=4, num_classes=3)
    assert list(module.state_dict()) == ["means"]
    assert list(module.groups()) == ["means"]


@pytest.mark.parametrize(("margin", "likelihood"), [(0.3, 0.1), (1.0, 0.1), (0.0, 0.2)])
@pytest.mark.parametrize("above", [False, True])
def test_two_classes_collapse_where_margin_and_likelihood_outweigh_what_tells_them_apart(margin, likelihood, above):
    """With features w (y a + n), noise n of variance 1 and means +-m the loss falls from w = m = 0 or does not."""
    c = margin / 2 + likelihood
    a = c / math.sqrt(1 + 2 * c) * (1.05 if above else 0.95)
    label = torch.tensor([0, 1, 0, 1])
    signal = (2 * label - 1) * a + torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)

    def loss(w, m):
        means = torch.tensor([[-m], [m]], dtype=torch.float64)
        module = mixture(means, margin=margin, likelihood=likelihood)
        return module.loss(module(as_map(w * signal[:, None])), label)["loss"].item()

    turns = torch.linspace(0, math.pi, 721).tolist()
    least = min(loss(1e-3 * math.cos(turn), 1e-3 * math.sin(turn)) for turn in turns) - loss(0, 0)
    assert least < 0 if above else least > 0
