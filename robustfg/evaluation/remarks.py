"""What must be read together with the verdict: numbers that are no better than guessing, and what checks exclude."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from robustfg.evaluation.checks import Check, Facts
from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.statistics import upper_limit

SAMPLED = {"determinism", "unbounded", "reference", "gradient_free"}
"""Checks on a part of the samples that judge by the share of those against them."""


def remarks_of(
    table: pa.Table, counts: Mapping[str, Any], classes: int, checks: Iterable[Check], facts: Facts
) -> list[str]:
    """Sentences that stand beside the verdict.

    Args:
        table: all rows.
        counts: what ``summarise`` found.
        classes: K.
        checks: of the evaluation.
        facts: what the rows do not tell.
    """
    label = column(table, "label")[column(table, "attack") == CLEAN]
    return [*_of_chance(label, counts, classes), *_of_embeddings(facts), *_of_power(checks)]


def finite(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with null for every number that is NaN or infinite, and a remark that names them."""
    lost: list[str] = []

    def strict(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: strict(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [strict(part, name) for part in value]
        if isinstance(value, float) and not math.isfinite(value):
            lost.append(name)
            return None
        return value

    found: dict[str, Any] = strict(summary, "")
    if lost:
        names = list(dict.fromkeys(lost))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        remark = f"Not finite, and so null in summary.json: {', '.join(names[:3])}{more}."
        found["remarks"] = [*found.get("remarks", []), remark]
    return found


def _of_embeddings(facts: Facts) -> list[str]:
    n = facts.embeddings_not_finite
    return [f"The embeddings of {n} samples are not finite; numbers about the feature space are void."] if n else []


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
