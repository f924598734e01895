import itertools

import numpy as np
import pytest
from scipy.stats import chi2, norm

from robustfg.evaluation.mardia import Mardia, of_moments


def whitened(points):
    away = points - points.mean(0)
    values, vectors = np.linalg.eigh(away.T @ away / len(points))
    return away @ vectors / np.sqrt(values)


def mardia_of(points):
    z = whitened(points)
    return of_moments(len(z), np.einsum("na,nb,nc->abc", z, z, z) / len(z), float(((z**2).sum(1) ** 2).mean()))


def test_skewness_and_kurtosis_are_the_means_over_pairs_and_points():
    points = np.random.default_rng(0).gamma(2.0, size=(25, 3))
    found, covariance = mardia_of(points), np.cov(points.T, bias=True)
    away, inverse = points - points.mean(0), np.linalg.inv(covariance)
    pairs = [(one @ inverse @ other) ** 3 for one, other in itertools.product(away, away)]
    assert found.skewness == pytest.approx(np.mean(pairs))
    assert found.kurtosis == pytest.approx(np.mean([(one @ inverse @ one) ** 2 for one in away]))
    assert (found.n, found.d) == (25, 3)


def test_p_values_are_those_of_mardias_approximations_written_out():
    found = Mardia(n=40, d=2, skewness=1.3, kurtosis=9.1)
    factor = 3 * 41 * 43 / (40 * (41 * 3 - 6))
    assert found.skewness_p == pytest.approx(chi2.sf(factor * 40 * 1.3 / 6, 4))
    variance = 8 * 2 * 4 * 37 * 37 * 39 / (41**2 * 43 * 45)
    assert found.kurtosis_p == pytest.approx(2 * norm.sf((9.1 - 8 * 39 / 41) / variance**0.5))


def test_one_dimension_gives_the_squared_skewness_and_the_kurtosis():
    points = np.random.default_rng(1).exponential(size=(50, 1))
    z = (points[:, 0] - points.mean()) / points.std()
    found = mardia_of(points)
    assert found.skewness == pytest.approx((z**3).mean() ** 2)
    assert found.kurtosis == pytest.approx((z**4).mean())


@pytest.mark.parametrize(("n", "d"), [(20, 5), (30, 7), (100, 2)])
def test_about_one_gaussian_sample_in_twenty_is_rejected(n, d):
    generator = np.random.default_rng(2)
    found = [mardia_of(generator.normal(size=(n, d))) for _ in range(800)]
    for name in ("skewness_p", "kurtosis_p"):
        share = np.mean([getattr(mardia, name) < 0.05 for mardia in found])
        assert 0.025 < share < 0.085, (name, share)
    kurtosis = np.array([mardia.kurtosis for mardia in found])
    assert kurtosis.mean() == pytest.approx(found[0].expected_kurtosis, abs=4 * kurtosis.std() / 800**0.5)


@pytest.mark.parametrize("draw", ["standard_exponential", "standard_t", "uniform"])
def test_skewed_heavy_and_light_tails_are_rejected(draw):
    generator = np.random.default_rng(3)
    points = generator.standard_t(3, (300, 3)) if draw == "standard_t" else getattr(generator, draw)(size=(300, 3))
    found = mardia_of(points)
    assert found.kurtosis_p < 1e-6
    assert (found.kurtosis > found.expected_kurtosis) == (draw != "uniform")
    if draw == "standard_exponential":
        assert found.skewness_p < 1e-6
