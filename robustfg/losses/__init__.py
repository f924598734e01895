"""Loss modules: a head and the criterion that trains it, plain torch."""

from robustfg.losses.attention_pooling import AttentionPooling
from robustfg.losses.base import LossModule, Survey
from robustfg.losses.gm import GaussianMixture
from robustfg.losses.maxsep import MaximalSeparation
from robustfg.losses.protopnet import ProtoPNet
from robustfg.losses.softmax import Softmax

__all__ = [
    "AttentionPooling",
    "GaussianMixture",
    "LossModule",
    "MaximalSeparation",
    "ProtoPNet",
    "Softmax",
    "Survey",
]
