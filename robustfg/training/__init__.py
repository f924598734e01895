"""Regimes, phases and learning-rate schedules."""

from robustfg.training.adversarial import Adversarial
from robustfg.training.awp import WeightPerturbation
from robustfg.training.ccat import Ccat
from robustfg.training.fast import Fast
from robustfg.training.free import Free
from robustfg.training.guard import Guard
from robustfg.training.mart import Mart
from robustfg.training.mcat import Mcat
from robustfg.training.mixup import Mixup
from robustfg.training.phase_change import PhaseChange
from robustfg.training.phases import Phase, Phases
from robustfg.training.regime import Regime, Standard
from robustfg.training.schedule import Constant, Cosine, MultiStep, Schedule, Step
from robustfg.training.trades import Trades

__all__ = [
    "Adversarial",
    "Ccat",
    "Constant",
    "Cosine",
    "Fast",
    "Free",
    "Guard",
    "Mart",
    "Mcat",
    "Mixup",
    "MultiStep",
    "Phase",
    "PhaseChange",
    "Phases",
    "Regime",
    "Schedule",
    "Standard",
    "Step",
    "Trades",
    "WeightPerturbation",
]
