"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model."""

from robustfg.attacks.balls import L1, L2, Linf
from robustfg.attacks.base import Attack, Attempt
from robustfg.attacks.deepfool import DeepFool
from robustfg.attacks.engine import Engine
from robustfg.attacks.fab import FAB
from robustfg.attacks.gradient import GradientAttack
from robustfg.attacks.minimum import MinimumNormAttack
from robustfg.attacks.objectives import (
    CrossEntropy,
    DifferenceOfLogitsRatio,
    KullbackLeibler,
    Margin,
    Objective,
    ScaledCrossEntropy,
)
from robustfg.attacks.presets import BIM, FGSM, MIM, PGD
from robustfg.attacks.steps import Momentum, Nesterov, Steepest, StepRule
from robustfg.attacks.threat import Threat
from robustfg.attacks.transforms import ResizeAndPad, Smoothing

__all__ = [
    "BIM",
    "FAB",
    "FGSM",
    "L1",
    "L2",
    "MIM",
    "PGD",
    "Attack",
    "Attempt",
    "CrossEntropy",
    "DeepFool",
    "DifferenceOfLogitsRatio",
    "Engine",
    "GradientAttack",
    "KullbackLeibler",
    "Linf",
    "Margin",
    "MinimumNormAttack",
    "Momentum",
    "Nesterov",
    "Objective",
    "ResizeAndPad",
    "ScaledCrossEntropy",
    "Smoothing",
    "Steepest",
    "StepRule",
    "Threat",
]
