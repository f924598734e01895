import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from shards import on_ranks
from test_mardia import mardia_of

from robustfg.evaluation import claim, gather, gaussianity, picture, separation
from robustfg.evaluation.claim import claimed_law
from robustfg.evaluation.embedding import embedding_of
from robustfg.evaluation.gaussianity import against_law, gaussianity_of, undone
from robustfg.evaluation.scatter import scatter_of
from robustfg.evaluation.separation import Embeddings
from robustfg.evaluation.symmetry import symmetry_of
from robustfg.losses.covariance import Identity
from robustfg.losses.diagonal_covariance import Diagonal
from robustfg.losses.full_covariance import Full
from robustfg.losses.gm import GaussianMixture
from robustfg.losses.priors import Learned

pytestmark = pytest.mark.numeric

MODULES = (claim, gather, gaussianity, picture, separation)


def embeddings_of(points, labels, rank=0, world=1):
    found = Embeddings()
    rows = torch.arange(rank, len(labels), world)
    for part in rows.flip(0).chunk(3):
        found.add(torch.as_tensor(points)[part].float(), torch.as_tensor(labels)[part], part)
    return found


def diagnosed(points, labels):
    embeddings = embeddings_of(points, labels)
    names = [str(k) for k in range(int(max(labels)) + 1)]
    return gaussianity_of(embeddings, scatter_of(embeddings, len(names)), names)


def classes(generator, count, each, d, draw="normal"):
    labels = np.arange(count * each) % count
    return getattr(generator, draw)(size=(len(labels), d)) + 9 * generator.normal(size=(count, d))[labels], labels


def test_every_class_is_tested_along_the_leading_directions_of_the_scatter_within_classes():
    generator = np.random.default_rng(0)
    points, labels = classes(generator, 3, 24, 10, "exponential")
    points = points @ generator.normal(size=(10, 10))
    found = diagnosed(points, labels)
    away = np.stack([x - points[labels == y].mean(0) for x, y in zip(points, labels, strict=True)])
    values, vectors = np.linalg.eigh(away.T @ away)
    assert (found["dimensions"], found["directions"]) == (10, 6)  # a quarter of 24 samples
    assert found["held"] == pytest.approx(values[-6:].sum() / values.sum(), rel=1e-5)
    for k in range(3):
        naive = mardia_of(points[labels == k] @ vectors[:, -6:])
        told = found["classes"][str(k)]
        assert told["n"] == 24
        assert told["skewness"] == pytest.approx(naive.skewness, rel=1e-4)
        assert told["kurtosis"] == pytest.approx(naive.kurtosis, rel=1e-4)
        assert told["kurtosis_p"] == pytest.approx(naive.kurtosis_p, rel=2e-2)
        assert told["skewness_p"] == pytest.approx(naive.skewness_p, rel=2e-2)
    for name in ("skewness", "kurtosis"):
        rejected = sum(told[f"{name}_p"] < 0.05 for told in found["classes"].values())
        assert found[name] == {"rejected": rejected, "tested": 3, "expected": pytest.approx(0.15)}


def test_gaussian_classes_are_not_called_otherwise_even_with_more_dimensions_than_samples():
    generator = np.random.default_rng(1)
    scales = np.exp(generator.normal(size=300))
    points, labels = classes(generator, 60, 24, 300)
    found = diagnosed(points * scales, labels)
    assert (found["dimensions"], found["directions"]) == (300, 6)
    for name in ("skewness", "kurtosis"):
        assert found[name]["tested"] == 60
        assert found[name]["rejected"] <= 9  # 3 expected; more has a chance of 1 in 1000
    law = found["distances"]
    assert law["n"] == 1440
    assert law["ks"] < law["ks_chance"]
    assert np.allclose(law["qq"]["expected"], law["qq"]["found"], rtol=0.2)


@pytest.mark.parametrize("draw", ["exponential", "standard_t", "uniform"])
def test_other_classes_are_called_not_gaussian(draw):
    generator = np.random.default_rng(2)
    labels = np.arange(1000) % 5
    points = generator.standard_t(3, (1000, 4)) if draw == "standard_t" else getattr(generator, draw)(size=(1000, 4))
    found = diagnosed(points, labels)
    assert found["kurtosis"]["rejected"] == 5
    assert found["distances"]["ks"] > 1.5 * found["distances"]["ks_chance"]
    last = found["distances"]["qq"]["found"][-1] / found["distances"]["qq"]["expected"][-1]
    assert last < 0.9 if draw == "uniform" else last > 1.2


def test_small_and_flat_classes_are_counted_and_left_out():
    generator = np.random.default_rng(3)
    points, labels = generator.normal(size=(90, 3)), np.repeat([0, 1, 2], [40, 10, 40])
    points[labels == 2, 1] = 5.0  # constant along one axis
    found = diagnosed(points, labels)
    assert list(found["classes"]) == ["0"]
    assert (found["too_few"], found["flat"], found["distances"]["n"]) == (1, 1, 40)
    assert diagnosed(points[labels == 1], labels[labels == 1] * 0) is None
    assert diagnosed(np.ones((50, 3)), np.zeros(50, int)) is None


def test_a_rank_below_the_dimensions_limits_the_directions():
    generator = np.random.default_rng(4)
    points = generator.normal(size=(200, 2)) @ generator.normal(size=(2, 30)) + 7
    found = diagnosed(points, np.arange(200) % 4)
    assert found["directions"] == 2
    assert found["held"] == pytest.approx(1)


def test_distances_by_the_samples_own_covariance_follow_chi_square_once_that_is_undone():
    generator = np.random.default_rng(5)
    d, n, drawn = 4, 12, []
    for _ in range(400):
        away = generator.normal(size=(n, d))
        away -= away.mean(0)
        drawn.append(np.einsum("na,ab,nb->n", away, np.linalg.inv(away.T @ away / n), away))
    raw = np.concatenate(drawn)
    assert kstest(raw, chi2(d).cdf).statistic > 0.05
    assert kstest(undone(raw, np.full(len(raw), n), d), chi2(d).cdf).statistic < 0.02
    order = np.argsort(raw)
    assert (np.diff(undone(raw, np.full(len(raw), n), d)[order]) >= 0).all()


def test_the_law_is_compared_as_scipy_does():
    distance = np.random.default_rng(6).chisquare(5, 777) * 1.1
    found = against_law(distance, 5, chance=0.1)
    empirical = np.arange(778) / 777
    at = chi2.cdf(np.sort(distance), 5)
    assert found["ks"] == pytest.approx(max((empirical[1:] - at).max(), (at - empirical[:-1]).max()))
    assert found["mean_ratio"] == pytest.approx(distance.mean() / 5)
    assert found["ks_chance"] == 0.1
    assert len(found["qq"]["found"]) == 50
    assert found["qq"]["expected"][24] == pytest.approx(chi2.ppf(0.49, 5), rel=1e-4)
    assert found["qq"]["found"][24] == pytest.approx(np.quantile(distance, 0.49), rel=1e-2)


def test_means_on_a_simplex_are_perfectly_symmetric_and_on_a_line_are_not():
    points, labels = np.eye(4).repeat(2, 0), np.arange(4).repeat(2)
    found = symmetry_of(scatter_of(embeddings_of(points, labels), 4))
    assert found == {
        "pairs": 6, "mean": pytest.approx(2**0.5, rel=1e-5), "smallest": pytest.approx(2**0.5, rel=1e-5),
        "largest": pytest.approx(2**0.5, rel=1e-5), "variation": 0.0, "smallest_to_largest": 1.0, "noise": 0.0,
    }  # fmt: skip
    line = np.array([[0.0], [1.0], [3.0]]).repeat(2, 0)
    found = symmetry_of(scatter_of(embeddings_of(line, np.arange(3).repeat(2)), 4))  # the fourth class has no sample
    assert (found["pairs"], found["smallest"], found["largest"]) == (3, 1.0, 3.0)
    assert found["variation"] == pytest.approx(np.std([1, 2, 3]) / 2, rel=1e-5)
    assert symmetry_of(scatter_of(embeddings_of(line[:4], np.arange(2).repeat(2)), 2)) is None


def test_the_noise_of_means_that_coincide_explains_all_of_their_distance():
    points, labels = np.random.default_rng(7).normal(size=(2000, 20)), np.arange(2000) % 40
    assert symmetry_of(scatter_of(embeddings_of(points, labels), 40))["noise"] == pytest.approx(1, abs=0.1)
    apart = points + 100 * np.random.default_rng(8).normal(size=(40, 20))[labels]
    assert symmetry_of(scatter_of(embeddings_of(apart, labels), 40))["noise"] < 1e-4


def test_single_samples_do_not_tell_what_chance_explains():
    points = np.array([[0.0], [2.0], [10.0], [14.0], [40.0]])
    one_each = symmetry_of(scatter_of(embeddings_of(points, np.arange(5)), 5))
    assert one_each["pairs"] == 10
    assert one_each["noise"] is None
    pairs = symmetry_of(scatter_of(embeddings_of(points, np.array([0, 0, 1, 1, 2])), 3))  # means 1, 12 and 40
    assert pairs["noise"] == pytest.approx((2 / 2 + 8 / 2) / 11**2, rel=1e-5)  # variances 2 and 8, the third unknown


class Claiming(torch.nn.Module):
    def __init__(self, means, variance):
        super().__init__()
        self.means, self.variance = means, variance

    def squared_distances(self, embedding):
        return torch.cdist(embedding, self.means).square() / self.variance


def test_a_true_claim_holds_and_a_wide_one_does_not():
    generator = torch.Generator().manual_seed(9)
    means, labels = torch.randn(3, 6, generator=generator), torch.arange(1500) % 3
    embeddings = embeddings_of(means[labels] + 2 * torch.randn(1500, 6, generator=generator), labels)
    for variance, ratio in ((4, 1), (16, 0.25)):
        found = claimed_law(embeddings, Claiming(means, variance), torch.device("cpu"))
        assert found["dimensions"] == 6
        assert found["mean_ratio"] == pytest.approx(ratio, rel=0.05)
        assert (found["ks"] < found["ks_chance"]) == (variance == 4)
    assert claimed_law(embeddings, torch.nn.Identity(), torch.device("cpu")) is None


@pytest.mark.parametrize("covariance", [Identity, Diagonal, partial(Full, tied=True), Full])
def test_samples_of_a_gaussian_mixture_are_as_it_claims_whatever_covariance_and_priors_it_has(covariance):
    torch.manual_seed(0)
    loss = GaussianMixture(channels=4, num_classes=3, covariance=covariance, priors=Learned)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    labels, matrices = torch.arange(3000) % 3, loss.covariance.matrices().detach()
    own = matrices[labels] if len(matrices) > 1 else matrices.expand(3000, -1, -1)
    points = torch.distributions.MultivariateNormal(loss.means.detach()[labels], own).sample()
    found = claimed_law(embeddings_of(points, labels), loss, torch.device("cpu"))
    assert found["ks"] < found["ks_chance"]
    assert found["mean_ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("d", [2, 5])
def test_three_processes_find_what_one_does(monkeypatch, tmp_path, d):
    generator = np.random.default_rng(10)
    points, labels = classes(generator, 4, 30, d)
    loss = Claiming(torch.zeros(4, d), 1)

    def found(place, rank, world):
        path = tmp_path / f"{place}.npz" if rank == 0 else None
        embeddings = embeddings_of(points, labels, rank, world)
        return embedding_of(embeddings, "abcd", loss=loss, device=torch.device("cpu"), picture=path)

    one = found("one", 0, 1)
    several = on_ranks(monkeypatch, MODULES, 3, lambda rank: found("several", rank, 3))
    assert {"gaussian", "symmetry", "claimed"} == one.keys()
    for other in several:
        assert flat(other) == pytest.approx(flat(one), rel=1e-4, abs=1e-9)
    ours, theirs = (np.load(tmp_path / f"{name}.npz") for name in ("one", "several"))
    for name in ("points", "label", "index", "means"):
        assert np.allclose(ours[name], theirs[name], atol=1e-5), name
    assert str(ours["axes"]) == ("embedding" if d == 2 else "discriminant")


def flat(value, name=""):
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return dict(itertools.chain.from_iterable(flat(part, f"{name}.{key}").items() for key, part in parts))
    return {name: value}
