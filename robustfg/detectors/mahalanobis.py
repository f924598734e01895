"""Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), without any adversarial sample."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfg.core.types import Output
from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.features import EMBEDDING, checked_features, feature_of, layers_among
from robustfg.detectors.gaussians import ClassGaussians, checked_share
from robustfg.detectors.moments import MomentFit, Moments


class Mahalanobis(Detector):
    """min_k (f - mu_k)^T S^-1 (f - mu_k), with one covariance S around all class means; summed over features.

    Lee et al. weigh the layers by a logistic regression on adversarial samples and shift the input; here nothing is
    learned from an attack.

    Args:
        features: ``embedding`` and names of inner layers.
        shrinkage: share of S that is replaced by a sphere; None: oracle approximating shrinkage (Chen et al. 2010). 0
            in the paper, which takes a pseudo-inverse.
        standardise: of several features, take off a distance's mean over the training samples and divide by its
            deviation were they Gaussian (for a plain S: D and sqrt(2 D)), so that long features do not drown short
            ones. One feature's distance stays as it is.
    """

    def __init__(
        self, *, features: Sequence[str] = (EMBEDDING,), shrinkage: float | None = None, standardise: bool = True
    ) -> None:
        super().__init__()
        self.features = checked_features(features)
        self.layers = layers_among(self.features)
        self.shrinkage = checked_share(shrinkage)
        self.standardise = standardise and len(self.features) > 1
        self.gaussians = nn.ModuleList(ClassGaussians() for _ in self.features)

    def fit(self) -> Fit:
        return MomentFit(self.features, self._learn)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        terms = []
        for name, gaussians in zip(self.features, self._gaussians(), strict=True):
            distance = gaussians.distance(feature_of(output, name))
            terms.append(gaussians.standardised(distance) if self.standardise else distance)
        return torch.stack(terms).sum(0)

    def _learn(self, moments: list[Moments]) -> None:
        for gaussians, found in zip(self._gaussians(), moments, strict=True):
            gaussians.learn(found, self.shrinkage, standardise=self.standardise)

    def _gaussians(self) -> list[ClassGaussians]:
        return list(self.gaussians)  # type: ignore[arg-type]
