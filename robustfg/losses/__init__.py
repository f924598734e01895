"""Loss modules: a head and the criterion that trains it, plain torch."""

from robustfg.losses.attention_pooling import AttentionPooling
from robustfg.losses.base import LossModule, Survey
from robustfg.losses.center import Center
from robustfg.losses.gm import GaussianMixture
from robustfg.losses.maxsep import MaximalSeparation
from robustfg.losses.pcl import PrototypeConformity
from robustfg.losses.protopnet import ProtoPNet
from robustfg.losses.softmax import Softmax
from robustfg.losses.triplet import Triplet

__all__ = [
    "AttentionPooling",
    "Center",
    "GaussianMixture",
    "LossModule",
    "MaximalSeparation",
    "ProtoPNet",
    "PrototypeConformity",
    "Softmax",
    "Survey",
    "Triplet",
]
