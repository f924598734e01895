"""Detectors: how abnormal an input looks, in numbers that an attack can differentiate."""

from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.feature_squeezing import FeatureSqueezing
from robustfg.detectors.fitted import Fitted
from robustfg.detectors.fitting import fit
from robustfg.detectors.kernel_density import KernelDensity
from robustfg.detectors.local_intrinsic_dimensionality import LocalIntrinsicDimensionality
from robustfg.detectors.logits import Energy, Likelihood, MaxLogit, MaxSoftmax
from robustfg.detectors.mahalanobis import Mahalanobis
from robustfg.detectors.nearest_neighbours import NearestNeighbours
from robustfg.detectors.prototype_similarity import PrototypeSimilarity
from robustfg.detectors.relative_mahalanobis import RelativeMahalanobis
from robustfg.detectors.threshold import threshold_at
from robustfg.detectors.watched import Watched

__all__ = [
    "Detector",
    "Energy",
    "FeatureSqueezing",
    "Fit",
    "Fitted",
    "KernelDensity",
    "Likelihood",
    "LocalIntrinsicDimensionality",
    "Mahalanobis",
    "MaxLogit",
    "MaxSoftmax",
    "NearestNeighbours",
    "PrototypeSimilarity",
    "RelativeMahalanobis",
    "Watched",
    "fit",
    "threshold_at",
]
