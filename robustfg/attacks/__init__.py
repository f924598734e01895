"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model."""

from robustfg.attacks.balls import L1, L2, Linf
from robustfg.attacks.base import Attack, Attempt
from robustfg.attacks.bpda import Bpda, differentiable
from robustfg.attacks.distances import NearestWrongCentre, NearestWrongPrototype
from robustfg.attacks.engine import Engine
from robustfg.attacks.features import FeatureAttack, FeatureBank
from robustfg.attacks.gradient import GradientAttack
from robustfg.attacks.heads import OnHead, Summed
from robustfg.attacks.joint import Lagrangian, Selective, WrongAndAccepted, WrongAndNear
from robustfg.attacks.objectives import (
    CrossEntropy,
    DifferenceOfLogitsRatio,
    KullbackLeibler,
    Margin,
    Objective,
    ScaledCrossEntropy,
)
from robustfg.attacks.presets import BIM, FGSM, MIM, PGD
from robustfg.attacks.regions import Frame, Patch, Region
from robustfg.attacks.spatial import Rigid, Spatial
from robustfg.attacks.steps import Momentum, Nesterov, Steepest, StepRule
from robustfg.attacks.threat import Threat
from robustfg.attacks.transforms import ResizeAndPad, Smoothing
from robustfg.attacks.universal import UniversalPerturbation

__all__ = [
    "BIM",
    "FGSM",
    "L1",
    "L2",
    "MIM",
    "PGD",
    "Attack",
    "Attempt",
    "Bpda",
    "CrossEntropy",
    "DifferenceOfLogitsRatio",
    "Engine",
    "FeatureAttack",
    "FeatureBank",
    "Frame",
    "GradientAttack",
    "KullbackLeibler",
    "Lagrangian",
    "Linf",
    "Margin",
    "Momentum",
    "NearestWrongCentre",
    "NearestWrongPrototype",
    "Nesterov",
    "Objective",
    "OnHead",
    "Patch",
    "Region",
    "ResizeAndPad",
    "Rigid",
    "ScaledCrossEntropy",
    "Selective",
    "Smoothing",
    "Spatial",
    "Steepest",
    "StepRule",
    "Summed",
    "Threat",
    "UniversalPerturbation",
    "WrongAndAccepted",
    "WrongAndNear",
    "differentiable",
]
