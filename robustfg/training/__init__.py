"""Regimes and learning-rate schedules."""

from robustfg.training.regimes import Adversarial, Regime, Standard
from robustfg.training.schedule import Constant, Cosine, MultiStep, Schedule, Step

__all__ = ["Adversarial", "Constant", "Cosine", "MultiStep", "Regime", "Schedule", "Standard", "Step"]
