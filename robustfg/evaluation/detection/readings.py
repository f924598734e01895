"""What a detector said, read from the rows of an evaluation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robustfg.evaluation.detection.standing import Standing
from robustfg.evaluation.measure import LEAST, SCORE
from robustfg.evaluation.records import CLEAN, column

Values = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Attacked images of samples that are right when clean, one for every sample and attack."""

    sample: Ids
    """``(M,)`` positions of the samples."""
    score: Values
    wrong: NDArray[np.bool_]
    """The prediction is wrong."""
    size: Values
    """Size of the perturbation as a share of the largest one allowed."""

    def some(self, chosen: NDArray) -> "Images":
        """A part, by a mask or by positions."""
        return Images(self.sample[chosen], self.score[chosen], self.wrong[chosen], self.size[chosen])

    def worst(self) -> "Images":
        """Of every sample, the image with the lowest score: it is detected only if all are (Granese et al. 2022)."""
        order = np.lexsort((self.score, self.sample))
        return self.some(order[np.unique(self.sample[order], return_index=True)[1]])


class Readings:
    """One detector's scores on all samples, in order of their ids.

    Args:
        table: all rows.
        detector: its name.

    Attributes:
        index: ``(N,)`` ids.
        label: ``(N,)`` true classes.
        right: ``(N,)`` whether the clean prediction is right.
        clean: ``(N,)`` scores of the clean images.
    """

    def __init__(self, table: pa.Table, detector: str) -> None:
        self._attack = column(table, "attack")
        self.index, self._position = np.unique(column(table, "index"), return_inverse=True)
        self._score = column(table, SCORE + detector).astype(float)  # null becomes NaN
        least = LEAST + detector
        none = np.full(table.num_rows, np.nan)
        self._least = column(table, least).astype(float) if least in table.column_names else none
        self._correct, self._margin = column(table, "correct").astype(bool), column(table, "margin")
        self._norm = column(table, "norm")
        clean = np.flatnonzero(self._attack == CLEAN)
        clean = clean[np.argsort(self._position[clean])]
        self.label, self.right, self.clean = column(table, "label")[clean], self._correct[clean], self._score[clean]

    def standing(self, attacks: Collection[str]) -> Standing:
        """Where every sample stands against the union of the given attacks, restarts included."""
        rows = np.isin(self._attack, list(attacks))
        seen = np.fmin(self._least, np.where(self._correct, np.nan, self._score))
        reached = self._lowest(np.where(np.isposinf(seen) & self._correct, np.nan, seen), rows)
        return Standing(self.right, self.clean, reached, self._lowest(self._score, rows))

    def images(self, attacks: Collection[str], radius: Mapping[str, float], *, joint: bool) -> Images:
        """What the given attacks handed out.

        Of several restarts a wrong image counts before a right one; among those the one with the smallest margin, or
        with the lowest score where the attack aimed at the detector too.

        Args:
            attacks: their names.
            radius: the largest size that each allows.
            joint: they aimed at the detector.
        """
        rows = np.flatnonzero(np.isin(self._attack, list(attacks)) & ~np.isnan(self._score))
        rows = rows[self.right[self._position[rows]]]
        prefer = (self._score if joint else self._margin)[rows]
        order = np.lexsort((prefer, self._correct[rows], self._attack[rows], self._position[rows]))
        keys = list(zip(self._position[rows][order].tolist(), self._attack[rows][order].tolist(), strict=True))
        first = [place for place, key in enumerate(keys) if place == 0 or key != keys[place - 1]]
        chosen = rows[order[first]] if first else rows[:0]
        largest = np.array([radius[name] for name in self._attack[chosen]], float)
        size = self._norm[chosen] / largest if len(chosen) else np.zeros(0)
        return Images(self._position[chosen], self._score[chosen], ~self._correct[chosen], size)

    def _lowest(self, values: Values, rows: NDArray[np.bool_]) -> Values:
        """Smallest value of every sample in the given rows; NaN where there is none."""
        chosen = rows & ~np.isnan(values)
        found = np.full(len(self.index), np.inf)
        np.minimum.at(found, self._position[chosen], values[chosen])
        some = np.zeros(len(self.index), bool)
        some[self._position[chosen]] = True
        return np.where(some, found, np.nan)
