"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model.

``__all__`` and tab completion show what scripts use. Configs and checkpoints may name everything imported here.

>>> from robustfg.attacks import APGD, Engine, Linf
>>> Engine().exact()  # on the model itself
Engine(fold=False, autocast=None, compile='auto', fixed_batch=None, samples=1)
>>> attack = APGD(threat=Linf(epsilon="8/255"), engine=Engine(samples=8))  # a model with random parts
"""
# ruff: noqa: F401

from robustfg.attacks.base import Attack
from robustfg.attacks.batch.task import Attempt
from robustfg.attacks.black_box.boundary_attack import BoundaryAttack
from robustfg.attacks.black_box.gradient_estimation import EstimatedGradient
from robustfg.attacks.black_box.hopskipjump import HopSkipJump
from robustfg.attacks.black_box.sparse_rs import SparseRS
from robustfg.attacks.black_box.spatial import Rigid, Spatial
from robustfg.attacks.black_box.square import Square
from robustfg.attacks.composed.cascade import Cascade
from robustfg.attacks.composed.transfer import Transfer
from robustfg.attacks.composed.universal import UniversalPerturbation
from robustfg.attacks.detector_aware.differentiability import detector_graph
from robustfg.attacks.detector_aware.lagrangian import Lagrangian, LagrangianSearch
from robustfg.attacks.detector_aware.selective import SelectivePGD
from robustfg.attacks.detector_aware.suites import black_box, white_box
from robustfg.attacks.gradient.apgd import APGD
from robustfg.attacks.gradient.apgd_l1 import L1APGD
from robustfg.attacks.gradient.backtracking import Backtracking
from robustfg.attacks.gradient.bpda import Bpda, differentiable
from robustfg.attacks.gradient.feature_space import FeatureAttack, FeatureBank
from robustfg.attacks.gradient.input_transforms import ResizeAndPad, Smoothing
from robustfg.attacks.gradient.pgd import GradientAttack
from robustfg.attacks.gradient.step_rules import Momentum, Nesterov, Steepest, StepRule
from robustfg.attacks.minimum_norm.base import MinimumNormAttack
from robustfg.attacks.minimum_norm.carlini_wagner import CarliniWagner
from robustfg.attacks.minimum_norm.deepfool import DeepFool
from robustfg.attacks.minimum_norm.elastic_net import ElasticNet
from robustfg.attacks.minimum_norm.fab import FAB
from robustfg.attacks.minimum_norm.fmn import FMN
from robustfg.attacks.objectives.acceptance import Reading, ScoreOf
from robustfg.attacks.objectives.distances import NearestWrongCentre, NearestWrongPrototype, WrongConfidence
from robustfg.attacks.objectives.heads import OnHead, Summed
from robustfg.attacks.objectives.joint import (
    Accepted,
    FooledFirst,
    Selective,
    TargetedAndAccepted,
    TargetedAndNear,
    WrongAndAccepted,
    WrongAndNear,
)
from robustfg.attacks.objectives.logits import (
    CrossEntropy,
    DifferenceOfLogitsRatio,
    KullbackLeibler,
    Margin,
    Objective,
    ScaledCrossEntropy,
)
from robustfg.attacks.objectives.target_choice import MostConfused, Siblings, TargetChoice, TopClasses
from robustfg.attacks.objectives.targeted import TargetedCrossEntropy, TargetedDLR, TargetedMargin, TargetedObjective
from robustfg.attacks.presets import BIM, FGSM, MIM, PGD
from robustfg.attacks.rng.directions import Directions, Gaussian, Rademacher
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.search import Search
from robustfg.attacks.threats.base import Threat
from robustfg.attacks.threats.l0 import L0
from robustfg.attacks.threats.lp import L1, L2, Linf
from robustfg.attacks.threats.regions import Frame, Patch, Region

__all__ = [
    "APGD",
    "BIM",
    "FAB",
    "FGSM",
    "FMN",
    "L0",
    "L1",
    "L1APGD",
    "L2",
    "MIM",
    "PGD",
    "Attack",
    "Attempt",
    "Backtracking",
    "BoundaryAttack",
    "CarliniWagner",
    "Cascade",
    "CrossEntropy",
    "DeepFool",
    "DifferenceOfLogitsRatio",
    "ElasticNet",
    "Engine",
    "EstimatedGradient",
    "FeatureAttack",
    "Frame",
    "GradientAttack",
    "HopSkipJump",
    "Linf",
    "Margin",
    "Momentum",
    "Nesterov",
    "Objective",
    "Patch",
    "SelectivePGD",
    "SparseRS",
    "Spatial",
    "Square",
    "Steepest",
    "Threat",
    "Transfer",
    "UniversalPerturbation",
    "black_box",
    "differentiable",
    "white_box",
]


def __dir__() -> list[str]:
    return __all__
