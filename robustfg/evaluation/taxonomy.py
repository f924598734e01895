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
Ids = NDArray[np.int64]


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
    found = {}
    for level, groups in taxonomy.items():
        _, group, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        found[level] = {name: _errors(table, group, sizes, rows) for name, rows in asked.items()}
    return found


def _errors(table: pa.Table, group: Ids, sizes: Ids, attacks: Iterable[str]) -> dict[str, Any]:
    """Of one level: the number of every class's group ``(K,)``, and how many classes every group has."""
    label, prediction = column(table, "label"), column(table, "prediction")
    same = group[label] == group[prediction]
    worst = worst_rows(table, attacks)
    wrong = worst[prediction[worst] != label[worst]]
    errors, inside = len(wrong), int(same[wrong].sum())
    held = held_per_sample(table, attacks, same)
    return {
        "errors": errors,
        "inside": inside,
        "outside": errors - inside,
        "share_inside": inside / errors if errors else None,
        "expected_inside": float(((sizes[group[label[wrong]]] - 1) / (len(group) - 1)).mean()) if errors else None,
        "held": counted(int(held.sum()), len(held)),
    }
