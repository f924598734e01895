import numpy as np
import pytest
from scipy.stats import beta, kstest

from robustfg.evaluation.ks_chance import difference, of_independent, of_whitened


def drawn(sizes, d, generator):
    """Where whitened distances of Gaussian classes lie in their law, class by class and one data set at a time."""
    found = []
    for n in sizes:
        sample = generator.multivariate_normal(np.arange(d), np.diag(np.arange(d) + 1.0) + 0.5, n)
        away = sample - sample.mean(0)
        distance = np.einsum("na,ab,nb->n", away, np.linalg.inv(np.cov(away.T, bias=True).reshape(d, d)), away)
        found.append(beta.cdf(distance / (n - 1), d / 2, (n - d - 1) / 2))
    return np.concatenate(found)


@pytest.mark.parametrize(("sizes", "d"), [([25] * 4, 3), ([40, 20, 90], 5), ([30], 1)])
def test_gaussian_classes_exceed_it_once_in_twenty_whatever_their_means_and_covariances(sizes, d):
    generator, chance = np.random.default_rng(7), of_whitened(sizes, d)
    ks = np.array([kstest(drawn(sizes, d, generator), "uniform").statistic for _ in range(600)])
    assert 0.02 < (ks > chance).mean() < 0.09
    assert chance < 0.95 * of_independent(sum(sizes))


def test_the_difference_is_scipys_statistic_row_by_row():
    rows = np.random.default_rng(0).random((5, 37)) ** 1.3
    assert np.allclose(difference(rows), [kstest(row, "uniform").statistic for row in rows], rtol=1e-12)


def test_independent_draws_exceed_theirs_once_in_twenty():
    ks = difference(np.random.default_rng(1).random((2000, 300)))
    assert 0.03 < (ks > of_independent(300)).mean() < 0.07
