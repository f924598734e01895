"""What the checks of an evaluation found, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

STRICT = ("budget", "eval_mode", "logits")
"""Checks that fail at the first sample against them."""
OTHERWISE = {*STRICT, "same_clean", "saturation", "effort", "realised_fpr", "half_epsilon"}
"""Checks that do not judge by the share of samples against them."""


def checks_line(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many checks passed, and which did not."""
    if not checks:
        return "No checks were run."
    passed = sum(check["status"] == "pass" for check in checks)
    others = [f"{check['name']} {check['status']}" for check in checks if check["status"] != "pass"]
    return f"{passed} of {len(checks)} checks passed" + (f"; {', '.join(others)}." if others else ".")


def tolerance(checks: Sequence[Mapping[str, Any]]) -> str:
    """What passes all the same, in a sentence; empty where nothing speaks against a check that passed."""
    spoken = [
        f"{check['name']} {check['count']} of {check['n']}"
        for check in checks
        if check["status"] == "pass" and check["count"] and check["name"] not in OTHERWISE
    ]
    return f"Against checks that passed: {', '.join(spoken)}. {TOLERANCE}" if spoken else ""


TOLERANCE = (
    "A check fails if its count speaks against a true rate of 1 % (20 % for finite_difference; one-sided binomial test "
    "at 5 %), and passes if it excludes one of 10 % (35 % there, 25 % where all samples were looked at) at 95 %."
)
"""The rates are those of ``robustfg/evaluation/checks/judge.py``."""
