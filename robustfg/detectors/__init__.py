"""Detectors: how abnormal an input looks, in numbers that an attack can differentiate."""

from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.watched import Watched

__all__ = ["Detector", "Fit", "Watched"]
