"""Loss modules: a head and the criterion that trains it, plain torch."""

from robustfg.losses.base import LossModule, Survey
from robustfg.losses.gm import GaussianMixture
from robustfg.losses.softmax import Softmax

__all__ = ["GaussianMixture", "LossModule", "Softmax", "Survey"]
