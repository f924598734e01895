"""How far distances lie from their law by chance, in Kolmogorov's and Smirnov's measure."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

DRAWS = 200
"""Simulated data sets; the 95 % quantile of so many is known to about 3 %."""
Values = NDArray[np.float64]


def of_independent(n: int) -> float:
    """What the difference to a law that does not depend on the draws exceeds once in 20; asymptotic."""
    return float(1.358 / n**0.5)


def of_whitened(sizes: Iterable[int], d: int, seed: int = 0) -> float:
    """What it exceeds once in 20 for squared distances of Gaussian classes by their own mean and covariance.

    Those distances depend on each other and differ less from their law than independent draws do. They are the same
    for all Gaussians of one size and dimension, so data sets of that many samples are simulated.

    Args:
        sizes: samples of every class, each more than ``d``.
        d: dimensions.
        seed: of the simulation.
    """
    generator = np.random.default_rng(seed)
    uniform = np.concatenate([_uniform(size, d, generator) for size in sizes], axis=1)
    return float(np.quantile(difference(uniform), 0.95))


def difference(uniform: Values) -> Values:
    """The largest difference of every row's distribution function to the uniform one, ``(R, N)`` to ``(R,)``."""
    ordered, n = np.sort(uniform, axis=1), uniform.shape[1]
    steps = np.arange(n + 1) / n
    found: Values = np.maximum((steps[1:] - ordered).max(1), (ordered - steps[:-1]).max(1))
    return found


def _uniform(n: int, d: int, generator: np.random.Generator) -> Values:
    """Where the distances of a simulated class lie in their law, Beta(d / 2, (n - d - 1) / 2), ``(DRAWS, n)``."""
    sample = generator.standard_normal((DRAWS, n, d))
    sample -= sample.mean(1, keepdims=True)
    factor = np.linalg.cholesky(np.swapaxes(sample, 1, 2) @ sample)
    white = np.linalg.solve(factor, np.swapaxes(sample, 1, 2))
    share = np.square(white).sum(1) * n / (n - 1)  # of the largest possible, by a covariance that is divided by n
    found: Values = beta.cdf(np.clip(share, 0, 1), d / 2, (n - d - 1) / 2)
    return found
