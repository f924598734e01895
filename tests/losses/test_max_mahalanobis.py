import math

import pytest
import torch
import torch.nn.functional as F

from robustfg.attacks import NearestWrongCentre
from robustfg.core.errors import UserError
from robustfg.losses import MaxMahalanobisCenter, MaxMahalanobisLDA
from robustfg.losses.simplex import simplex

BOTH = pytest.mark.parametrize("kind", [MaxMahalanobisCenter, MaxMahalanobisLDA])


def recursion(count, dim, square):
    """Pang et al. 2018, algorithm 1: one centre after the other."""
    points = torch.zeros(count, dim, dtype=torch.float64)
    points[0, 0] = 1
    for i in range(1, count):
        for j in range(i):
            points[i, j] = -(1 / (count - 1) + points[i] @ points[j]) / points[j, j]
        if i < count - 1:
            points[i, i] = math.sqrt(1 - points[i].square().sum())
    return math.sqrt(square) * points


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(6, 5, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    return feature_map, torch.tensor([0, 3, 2, 2, 1, 0])


def head(kind, **options):
    torch.manual_seed(0)
    return kind(channels=5, num_classes=4, **{"embedding_dim": 7, **options}).double()


def distances(module, feature_map):
    embedding = F.linear(feature_map.mean((2, 3)), module.embedding.project.weight, module.embedding.project.bias)
    return torch.stack([((embedding - mean) ** 2).sum(1) for mean in module.means], 1)


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (3, 2), (4, 3), (4, 9), (200, 256)])
def test_centres_are_the_vertices_of_a_regular_simplex(count, dim):
    points = simplex(count, dim, 10.0)
    expected = torch.full((count, count), -10.0 / (count - 1), dtype=torch.float64).fill_diagonal_(10.0)
    torch.testing.assert_close(points @ points.t(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(points.sum(0), torch.zeros(dim, dtype=torch.float64), rtol=0, atol=1e-10)


def test_they_are_those_of_the_papers_recursion():
    torch.testing.assert_close(simplex(6, 8, 10.0), recursion(6, 8, 10.0))


@BOTH
def test_the_centres_are_the_releases_unit_vectors_times_ten(kind):
    means = head(kind).means
    torch.testing.assert_close(means, 10 * recursion(4, 7, 1.0), rtol=1e-6, atol=1e-6)
    assert means.norm(dim=1).tolist() == pytest.approx([10.0] * 4)
    assert torch.pdist(means).tolist() == pytest.approx([math.sqrt(2 * 100 * 4 / 3)] * 6)


@BOTH
def test_too_few_dimensions_and_a_single_class_are_refused(kind):
    assert kind(channels=3, num_classes=4, embedding_dim=None).means.shape == (4, 3)
    with pytest.raises(UserError, match=r"loss\.embedding_dim must be >= 3, .*; got 2"):
        kind(channels=5, num_classes=4, embedding_dim=2)
    with pytest.raises(UserError, match=r"loss\.embedding_dim must be >= 3, .*; got 2"):
        kind(channels=2, num_classes=4, embedding_dim=None)
    with pytest.raises(UserError, match="two classes"):
        kind(channels=5, num_classes=1)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_mmc_is_the_squared_distance_to_the_true_centre(batch, factor):
    feature_map, label = batch
    module = head(MaxMahalanobisCenter, factor=factor)
    own = distances(module, feature_map)[torch.arange(6), label]
    torch.testing.assert_close(module.loss(module(feature_map), label)["loss"], factor * own.mean())


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_mmlda_is_the_cross_entropy_over_squared_distances(batch, factor):
    feature_map, label = batch
    module = head(MaxMahalanobisLDA, factor=factor, square=3.0)
    probability = torch.exp(-factor * distances(module, feature_map))
    expected = -(probability[torch.arange(6), label] / probability.sum(1)).log().mean()
    torch.testing.assert_close(module.loss(module(feature_map), label)["loss"], expected)
    assert module.means.square().sum(1).tolist() == pytest.approx([3.0] * 4)


@BOTH
def test_logits_are_half_distances_so_that_distance_attacks_and_detectors_read_them(batch, kind):
    feature_map, label = batch
    module = head(kind)
    output, distance = module(feature_map), distances(module, feature_map)
    torch.testing.assert_close(-2 * output.logits, distance)
    assert torch.equal(output.logits.argmax(1), distance.argmin(1))
    torch.testing.assert_close(module.anomaly(output), distance.min(1).values)
    wrong = [min(d for k, d in enumerate(row) if k != y) for row, y in zip(distance.tolist(), label, strict=True)]
    assert NearestWrongCentre()(output, label).tolist() == pytest.approx([-value for value in wrong])


@BOTH
def test_gradients_are_those_of_finite_differences(batch, kind):
    feature_map, label = batch
    module = head(kind)
    assert torch.autograd.gradcheck(lambda features: module.loss(module(features), label)["loss"], (feature_map,))


@BOTH
def test_centres_are_stored_and_not_trained(kind):
    module = head(kind)
    assert "means" in module.state_dict()
    assert {name for name, _ in module.named_parameters()} == {"embedding.project.weight", "embedding.project.bias"}


@BOTH
def test_a_half_precision_embedding_is_scored_in_full(kind):
    module = head(kind).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(torch.randn(6, 5, 3, 3))
    assert output.logits.dtype == torch.float32
    assert module.loss(output, torch.zeros(6, dtype=torch.int64))["loss"].dtype == torch.float32


@BOTH
@pytest.mark.parametrize("option", ["square", "factor"])
def test_options_that_make_no_sense_are_refused_by_name(kind, option):
    with pytest.raises(UserError, match=rf"loss\.{option} must be > 0, got 0"):
        head(kind, **{option: 0})
