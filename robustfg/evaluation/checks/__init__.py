"""Checks of the evaluation itself; each can fail."""

from robustfg.evaluation.checks.base import TOLERATED, Check, counted_check
from robustfg.evaluation.checks.judge import CURVED, Facts, judge, verdict
from robustfg.evaluation.checks.probes import PREFIX, Probe

__all__ = ["CURVED", "PREFIX", "TOLERATED", "Check", "Facts", "Probe", "counted_check", "judge", "verdict"]
