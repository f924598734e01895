"""Relative Mahalanobis distance (Ren et al. 2021, "A simple fix to Mahalanobis distance")."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfg.core.types import Output
from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.features import EMBEDDING, checked_features, feature_of, layers_among
from robustfg.detectors.gaussians import ClassGaussians, Whitener, checked_share
from robustfg.detectors.moments import MomentFit, Moments


class RelativeMahalanobis(Detector):
    """The distance to the nearest class minus that to one Gaussian of all samples; summed over features.

    What is as unusual in any class, such as a dim picture, cancels.

    Args:
        features: ``embedding`` and names of inner layers.
        shrinkage: of both covariances, as in ``Mahalanobis``.
    """

    def __init__(self, *, features: Sequence[str] = (EMBEDDING,), shrinkage: float | None = None) -> None:
        super().__init__()
        self.features = checked_features(features)
        self.layers = layers_among(self.features)
        self.shrinkage = checked_share(shrinkage)
        self.gaussians = nn.ModuleList(ClassGaussians() for _ in self.features)
        self.backgrounds = nn.ModuleList(Whitener() for _ in self.features)

    def fit(self) -> Fit:
        return MomentFit(self.features, self._learn)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        terms = []
        for name, gaussians, background in zip(self.features, self.gaussians, self.backgrounds, strict=True):
            feature = feature_of(output, name)
            assert isinstance(gaussians, ClassGaussians)
            terms.append(gaussians.distance(feature) - background(feature).square().sum(1))
        return torch.stack(terms).sum(0)

    def _learn(self, moments: list[Moments]) -> None:
        for gaussians, background, found in zip(self.gaussians, self.backgrounds, moments, strict=True):
            assert isinstance(gaussians, ClassGaussians) and isinstance(background, Whitener)  # noqa: PT018
            gaussians.learn(found, self.shrinkage)
            background.learn(found.mean(), found.overall(), found.total, self.shrinkage)
