"""Loss modules: a head and the criterion that trains it, plain torch."""

from robustfg.losses.base import LossModule, Survey
from robustfg.losses.center import Center
from robustfg.losses.gm import GaussianMixture
from robustfg.losses.pcl import PrototypeConformity
from robustfg.losses.softmax import Softmax
from robustfg.losses.triplet import Triplet

__all__ = ["Center", "GaussianMixture", "LossModule", "PrototypeConformity", "Softmax", "Survey", "Triplet"]
