"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model."""

from robustfg.attacks.balls import L1, L2, Linf
from robustfg.attacks.base import Attack, Attempt
from robustfg.attacks.cw import CarliniWagner
from robustfg.attacks.ead import ElasticNet
from robustfg.attacks.engine import Engine
from robustfg.attacks.fmn import FMN
from robustfg.attacks.gradient import GradientAttack
from robustfg.attacks.l0 import L0
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
    "FGSM",
    "FMN",
    "L0",
    "L1",
    "L2",
    "MIM",
    "PGD",
    "Attack",
    "Attempt",
    "CarliniWagner",
    "CrossEntropy",
    "DifferenceOfLogitsRatio",
    "ElasticNet",
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
