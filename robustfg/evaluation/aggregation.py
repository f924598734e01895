"""From rows to the numbers of summary.json: always per sample first, then counted."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.statistics import counted


def correct_per_sample(table: pa.Table, attacks: Iterable[str]) -> NDArray[np.bool_]:
    """Whether each sample is right under every restart of every given attack; samples in the order of their ids.

    Mean of the minimum, never minimum of means.
    """
    return held_per_sample(table, attacks, column(table, "correct"))


def held_per_sample(table: pa.Table, attacks: Iterable[str], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether ``held``, one truth per row, holds in every row of the given attacks, for each sample in order of ids."""
    chosen = np.isin(column(table, "attack"), list(attacks))
    samples, position = np.unique(column(table, "index"), return_inverse=True)
    found = np.ones(len(samples), bool)
    np.logical_and.at(found, position[chosen], held[chosen])
    return found


def worst_rows(table: pa.Table, attacks: Iterable[str]) -> NDArray[np.int64]:
    """Of every sample that has any, the row of the given attacks with the smallest margin; samples in order of ids.

    Ties go to a wrong prediction first, then to the row that stands first.
    """
    rows = np.flatnonzero(np.isin(column(table, "attack"), list(attacks)))
    index, correct, margin = (column(table, name)[rows] for name in ("index", "correct", "margin"))
    order = np.lexsort((rows, correct, margin, index))
    first = np.unique(index[order], return_index=True)[1]
    return rows[order[first]]


def summarise(
    table: pa.Table, descriptions: Mapping[str, Mapping[str, object]], also: Iterable[str] = ()
) -> dict[str, Any]:
    """The counts of an evaluation.

    Args:
        table: all rows.
        descriptions: settings of every attack by name.
        also: further attacks whose successes count in the worst case, such as a check's on part of the samples.

    Returns:
        The keys ``n``, ``clean``, ``attacks`` and ``worst_case`` of ``summary.json``.
    """
    names = column(table, "attack")
    n = len(np.unique(column(table, "index")))
    attacks = {}
    for name, description in descriptions.items():
        chosen = names == name
        spent = {key: int(column(table, key)[chosen].sum()) for key in ("forwards", "backwards")}
        attacks[name] = {
            **description,
            **({"stages": _stages(table, name, description)} if "stages" in description else {}),
            **counted(int(correct_per_sample(table, [name]).sum()), n),
            **spent,
            "seconds": round(float(column(table, "seconds")[chosen].sum()), 2),
        }
    return {
        "n": n,
        "clean": counted(int(correct_per_sample(table, [CLEAN]).sum()), n),
        "attacks": attacks,
        "borderline": int(column(table, "borderline").astype(bool).sum()),
        "worst_case": counted(int(correct_per_sample(table, [CLEAN, *descriptions, *also]).sum()), n),
    }


def _stages(table: pa.Table, name: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """Of every stage of a cascade: its settings, the accuracy left after it, and what it cost."""
    restart, own = column(table, "restart"), column(table, "attack") == name
    stages, begin = {}, 0
    for stage, settings in description["stages"].items():
        end = begin + settings["rounds"]
        spent = own & (restart >= begin) & (restart < end)
        left = correct_per_sample(table.filter(own & (restart < end)), [name])
        costs = {key: int(column(table, key)[spent].sum()) for key in ("forwards", "backwards")}
        seconds = round(float(column(table, "seconds")[spent].sum()), 2)
        stages[stage] = {**settings, **counted(int(left.sum()), len(left)), **costs, "seconds": seconds}
        begin = end
    return stages


def require_complete(table: pa.Table, positions: NDArray[np.int64], rounds: Mapping[str, int]) -> None:
    """Raises RuntimeError unless every sample is there exactly once per attack and restart, and once clean.

    Args:
        table: all rows.
        positions: ids of the evaluated samples.
        rounds: number of rounds of every attack by name.
    """
    for name, count in {CLEAN: 1, **rounds}.items():
        chosen = column(table, "attack") == name
        for restart in range(count):
            found = np.sort(column(table, "index")[chosen & (column(table, "restart") == restart)])
            if not np.array_equal(found, np.sort(positions)):
                raise RuntimeError(f"{name}, restart {restart}: {len(found)} records for {len(positions)} samples")
