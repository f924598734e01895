"""Loss modules: a head and the criterion that trains it, plain torch."""

from robustfg.losses.arcface import ArcFace
from robustfg.losses.attention_pooling import AttentionPooling
from robustfg.losses.base import LossModule, Survey
from robustfg.losses.center import Center
from robustfg.losses.cosface import CosFace
from robustfg.losses.gm import GaussianMixture
from robustfg.losses.large_margin_softmax import LargeMarginSoftmax
from robustfg.losses.maxsep import MaximalSeparation
from robustfg.losses.mmc import MaxMahalanobisCenter
from robustfg.losses.mmlda import MaxMahalanobisLDA
from robustfg.losses.pcl import PrototypeConformity
from robustfg.losses.protopnet import ProtoPNet
from robustfg.losses.softmax import Softmax
from robustfg.losses.triplet import Triplet

__all__ = [
    "ArcFace",
    "AttentionPooling",
    "Center",
    "CosFace",
    "GaussianMixture",
    "LargeMarginSoftmax",
    "LossModule",
    "MaxMahalanobisCenter",
    "MaxMahalanobisLDA",
    "MaximalSeparation",
    "ProtoPNet",
    "PrototypeConformity",
    "Softmax",
    "Survey",
    "Triplet",
]
