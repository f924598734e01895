"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model."""

from robustfg.attacks.base import Attack, Attempt
from robustfg.attacks.gradient import GradientAttack
from robustfg.attacks.objectives import CrossEntropy, Margin, Objective
from robustfg.attacks.steps import Momentum, Steepest, StepRule
from robustfg.attacks.threat import L2, Linf, Threat

__all__ = [
    "L2",
    "Attack",
    "Attempt",
    "CrossEntropy",
    "GradientAttack",
    "Linf",
    "Margin",
    "Momentum",
    "Objective",
    "Steepest",
    "StepRule",
    "Threat",
]
