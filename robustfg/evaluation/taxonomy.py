"""Errors by taxonomy: does a wrong prediction stay inside the genus, the family …, or leave it?"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robustfg.evaluation.aggregation import held_per_sample, worst_rows
from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.statistics import counted

Taxonomy = Mapping[str, Sequence[str]]


def errors_by_taxonomy(
    table: pa.Table, taxonomy: Taxonomy, attacks: Iterable[str], also: Iterable[str] = ()
) -> dict[str, Any]:
    """Where errors go, for clean input, every attack and the worst case, at every level.

    An error is judged by the prediction with the smallest margin over everything in question; it is inside where true
    and predicted class share their group. ``expected_inside`` is the share if errors fell on all wrong classes alike.
    ``held`` counts samples that nothing in question moved out of their group: attacks do not aim at leaving it, so
    that is a weaker bound than the accuracy over classes.

    Args:
        table: all rows.
        taxonomy: groups of every class by level.
        attacks: names of the suite.
        also: further attacks that count in the worst case.

    Returns:
        ``{level: {"clean" | attack | "worst_case": {"errors", "inside", "outside", "share_inside", "expected_inside",
        "held"}}}``.
    """
    attacks = list(attacks)
    asked = {CLEAN: [CLEAN], **{name: [name] for name in attacks}, "worst_case": [CLEAN, *attacks, *also]}
    return {
        level: {name: _errors(table, np.asarray(groups), rows) for name, rows in asked.items()}
        for level, groups in taxonomy.items()
    }


def _errors(table: pa.Table, groups: NDArray[np.str_], attacks: Iterable[str]) -> dict[str, Any]:
    label, prediction = column(table, "label"), column(table, "prediction")
    same = groups[label] == groups[prediction]
    worst = worst_rows(table, attacks)
    wrong = worst[prediction[worst] != label[worst]]
    siblings = (groups[:, None] == groups).sum(1) - 1
    errors, inside = len(wrong), int(same[wrong].sum())
    held = held_per_sample(table, attacks, same)
    return {
        "errors": errors,
        "inside": inside,
        "outside": errors - inside,
        "share_inside": inside / errors if errors else None,
        "expected_inside": float((siblings[label[wrong]] / (len(groups) - 1)).mean()) if errors else None,
        "held": counted(int(held.sum()), len(held)),
    }
