"""Attacks, usable without the rest: plain torch, no Lightning, no Hydra, no particular model."""

from robustfg.attacks.acceptance import Reading, ScoreOf
from robustfg.attacks.against_detector import black_box, white_box
from robustfg.attacks.apgd import APGD
from robustfg.attacks.apgd_l1 import L1APGD
from robustfg.attacks.backtracking import Backtracking
from robustfg.attacks.balls import L1, L2, Linf
from robustfg.attacks.base import Attack, Attempt
from robustfg.attacks.boundary_attack import BoundaryAttack
from robustfg.attacks.bpda import Bpda, differentiable
from robustfg.attacks.cascade import Cascade
from robustfg.attacks.confidence import WrongConfidence
from robustfg.attacks.cw import CarliniWagner
from robustfg.attacks.deepfool import DeepFool
from robustfg.attacks.detector_graph import detector_graph
from robustfg.attacks.directions import Directions, Gaussian, Rademacher
from robustfg.attacks.distances import NearestWrongCentre, NearestWrongPrototype
from robustfg.attacks.ead import ElasticNet
from robustfg.attacks.engine import Engine
from robustfg.attacks.estimated import EstimatedGradient
from robustfg.attacks.fab import FAB
from robustfg.attacks.features import FeatureAttack, FeatureBank
from robustfg.attacks.fmn import FMN
from robustfg.attacks.gradient import GradientAttack
from robustfg.attacks.heads import OnHead, Summed
from robustfg.attacks.hopskipjump import HopSkipJump
from robustfg.attacks.joint import (
    Accepted,
    FooledFirst,
    Selective,
    TargetedAndAccepted,
    TargetedAndNear,
    WrongAndAccepted,
    WrongAndNear,
)
from robustfg.attacks.l0 import L0
from robustfg.attacks.lagrangian import Lagrangian, LagrangianSearch
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
from robustfg.attacks.regions import Frame, Patch, Region
from robustfg.attacks.search import Search
from robustfg.attacks.selective import SelectivePGD
from robustfg.attacks.sparse_rs import SparseRS
from robustfg.attacks.spatial import Rigid, Spatial
from robustfg.attacks.square import Square
from robustfg.attacks.steps import Momentum, Nesterov, Steepest, StepRule
from robustfg.attacks.targeted import TargetedCrossEntropy, TargetedDLR, TargetedMargin, TargetedObjective
from robustfg.attacks.targets import MostConfused, Siblings, TargetChoice, TopClasses
from robustfg.attacks.threat import Threat
from robustfg.attacks.transfer import Transfer
from robustfg.attacks.transforms import ResizeAndPad, Smoothing
from robustfg.attacks.universal import UniversalPerturbation

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
    "Accepted",
    "Attack",
    "Attempt",
    "Backtracking",
    "BoundaryAttack",
    "Bpda",
    "CarliniWagner",
    "Cascade",
    "CrossEntropy",
    "DeepFool",
    "DifferenceOfLogitsRatio",
    "Directions",
    "ElasticNet",
    "Engine",
    "EstimatedGradient",
    "FeatureAttack",
    "FeatureBank",
    "FooledFirst",
    "Frame",
    "Gaussian",
    "GradientAttack",
    "HopSkipJump",
    "KullbackLeibler",
    "Lagrangian",
    "LagrangianSearch",
    "Linf",
    "Margin",
    "MinimumNormAttack",
    "Momentum",
    "MostConfused",
    "NearestWrongCentre",
    "NearestWrongPrototype",
    "Nesterov",
    "Objective",
    "OnHead",
    "Patch",
    "Rademacher",
    "Reading",
    "Region",
    "ResizeAndPad",
    "Rigid",
    "ScaledCrossEntropy",
    "ScoreOf",
    "Search",
    "Selective",
    "SelectivePGD",
    "Siblings",
    "Smoothing",
    "SparseRS",
    "Spatial",
    "Square",
    "Steepest",
    "StepRule",
    "Summed",
    "TargetChoice",
    "TargetedAndAccepted",
    "TargetedAndNear",
    "TargetedCrossEntropy",
    "TargetedDLR",
    "TargetedMargin",
    "TargetedObjective",
    "Threat",
    "TopClasses",
    "Transfer",
    "UniversalPerturbation",
    "WrongAndAccepted",
    "WrongAndNear",
    "WrongConfidence",
    "black_box",
    "detector_graph",
    "differentiable",
    "white_box",
]
