"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model."""

from robustfg.attacks.apgd import APGD
from robustfg.attacks.apgd_l1 import L1APGD
from robustfg.attacks.balls import L1, L2, Linf
from robustfg.attacks.base import Attack, Attempt
from robustfg.attacks.cascade import Cascade
from robustfg.attacks.engine import Engine
from robustfg.attacks.gradient import GradientAttack
from robustfg.attacks.objectives import (
    CrossEntropy,
    DifferenceOfLogitsRatio,
    KullbackLeibler,
    Margin,
    Objective,
    ScaledCrossEntropy,
)
from robustfg.attacks.presets import BIM, FGSM, MIM, PGD
from robustfg.attacks.search import Search
from robustfg.attacks.steps import Momentum, Nesterov, Steepest, StepRule
from robustfg.attacks.targeted import TargetedCrossEntropy, TargetedDLR, TargetedMargin, TargetedObjective
from robustfg.attacks.targets import Siblings, TargetChoice, TopClasses
from robustfg.attacks.threat import Threat
from robustfg.attacks.transfer import Transfer
from robustfg.attacks.transforms import ResizeAndPad, Smoothing

__all__ = [
    "APGD",
    "BIM",
    "FGSM",
    "L1",
    "L1APGD",
    "L2",
    "MIM",
    "PGD",
    "Attack",
    "Attempt",
    "Cascade",
    "CrossEntropy",
    "DifferenceOfLogitsRatio",
    "Engine",
    "GradientAttack",
    "KullbackLeibler",
    "Linf",
    "Margin",
    "Momentum",
    "Nesterov",
    "Objective",
    "ResizeAndPad",
    "ScaledCrossEntropy",
    "Search",
    "Siblings",
    "Smoothing",
    "Steepest",
    "StepRule",
    "TargetChoice",
    "TargetedCrossEntropy",
    "TargetedDLR",
    "TargetedMargin",
    "TargetedObjective",
    "Threat",
    "TopClasses",
    "Transfer",
]
