"""Checks of the evaluation itself; each can fail."""

from robustfg.evaluation.checks.base import Check
from robustfg.evaluation.checks.judge import CURVED, TOLERATED, Facts, judge, verdict
from robustfg.evaluation.checks.probes import PREFIX, Probe

__all__ = ["CURVED", "PREFIX", "TOLERATED", "Check", "Facts", "Probe", "judge", "verdict"]
