"""What must be read together with the verdict: numbers that are no better than guessing, and what checks exclude."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from robustfg.evaluation.checks import Check
from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.statistics import upper_limit

SAMPLED = {"determinism", "unbounded", "reference", "gradient_free"}
"""Checks on a part of the samples that judge by the share of those against them."""


def remarks_of(table: pa.Table, counts: Mapping[str, Any], classes: int, checks: Iterable[Check]) -> list[str]:
    """Sentences that stand beside the verdict.

    Args:
        table: all rows.
        counts: what ``summarise`` found.
        classes: K.
        checks: of the evaluation.
    """
    label = column(table, "label")[column(table, "attack") == CLEAN]
    return [*_of_chance(label, counts, classes), *_of_power(checks)]


def _of_chance(label: Any, counts: Mapping[str, Any], classes: int) -> list[str]:
    frequent = int(np.bincount(label).max()) if len(label) else 0
    share, how = max(
        (1 / classes, "drawing a class"), (frequent / max(len(label), 1), "naming the most frequent class")
    )
    told = [f"Only one class is among the {len(label)} samples."] if frequent == len(label) else []
    guessed = [
        f"{name} {100 * part['accuracy']:.1f} % ({part['correct']} of {part['n']})"
        for name, part in (("clean", counts["clean"]), ("worst case", counts["worst_case"]))
        if part["n"] and binomtest(part["correct"], part["n"], share, alternative="greater").pvalue >= 0.05
    ]
    if guessed:
        told.append(f"No better than {how}, which is right on {100 * share:.1f} %: {', '.join(guessed)}.")
    if counts["n"] and not counts["clean"]["correct"]:
        told.append("No sample was attacked: all are wrong when clean.")
    return told


def _of_power(checks: Iterable[Check]) -> list[str]:
    sampled = [check for check in checks if check.name in SAMPLED and check.status == "pass"]
    if not sampled:
        return []
    worst = max(sampled, key=lambda check: upper_limit(check.count, check.n))
    limit = 100 * upper_limit(worst.count, worst.n)
    return [
        f"The checks exclude, at 95 %, only faults that hit more than {limit:.1f} % of the samples ({worst.name}: "
        f"{worst.count} of {worst.n}); evaluation.checks=N looks at more."
    ]
