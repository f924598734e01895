"""Gaussians fitted to one feature."""

from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.detectors.learned import Learned
from robustfg.detectors.moments import Moments
from robustfg.detectors.nearest import Points
from robustfg.detectors.shrinkage import shrunk, whitening


def checked_share(shrinkage: float | None) -> float | None:
    """The share, if it is one. Raises ``UserError`` otherwise."""
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise UserError(f"detector.shrinkage must be in [0, 1], or null to estimate it, got {shrinkage}")
    return shrinkage


class Whitener(Learned):
    """Features with the mean taken off and the covariance turned into the identity: W (f - m).

    Attributes:
        mean: m ``(D,)``.
        matrix: W ``(D, D)``.
        expected: what ||W (f - own mean)||^2 is on average over the samples learned from; D but for the shrinkage.
        deviation: its standard deviation were the samples Gaussian; sqrt(2 D) but for the shrinkage. Both are empty
            where they were not asked for.
    """

    mean: Tensor
    matrix: Tensor
    expected: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__("mean", "matrix", "expected", "deviation")

    def learn(
        self, mean: Tensor, covariance: Tensor, count: float, shrinkage: float | None, *, standardise: bool = False
    ) -> Tensor:
        """From a mean ``(D,)`` and a covariance ``(D, D)`` of ``count`` samples; gives W in float64."""
        matrix = whitening(shrunk(covariance, count, shrinkage))
        self.keep(mean=mean, matrix=matrix)
        if standardise:
            left = matrix @ covariance @ matrix.t()
            deviation = (2 * left.square().sum()).sqrt()
            self.keep(expected=left.trace()[None], deviation=deviation[None])
        return matrix

    def forward(self, feature: Tensor) -> Tensor:
        """Whitens ``(B, D)``."""
        matrix = self.known("matrix")
        return (feature.to(matrix) - self.mean) @ matrix.t()


class ClassGaussians(nn.Module):
    """A Gaussian for every class, all with one covariance.

    Attributes:
        white: whitens by the covariance around the class means.
        means: of the classes that have samples, whitened, ``(K', D)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.white, self.means = Whitener(), Points()

    def learn(self, moments: Moments, shrinkage: float | None, *, standardise: bool = False) -> None:
        """From the moments of the feature; ``standardise``: what ``standardised`` needs, too."""
        mean = moments.mean()
        matrix = self.white.learn(mean, moments.within(), moments.total, shrinkage, standardise=standardise)
        means = moments.means()[moments.count > 0]
        self.means.learn((means - mean) @ matrix.t())

    def distance(self, feature: Tensor) -> Tensor:
        """Squared Mahalanobis distance of ``(B, D)`` to the nearest class, ``(B,)``."""
        return self.means.squared_distance(self.white(feature))

    def standardised(self, distance: Tensor) -> Tensor:
        """Minus its expectation over the training samples, divided by its deviation were they Gaussian."""
        return (distance - self.white.expected) / self.white.deviation.clamp_min(1e-12)
