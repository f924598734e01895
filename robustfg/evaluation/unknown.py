"""Unknown classes: are their images rejected, clean, and attacked so that they be accepted?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robustfg.attacks.gradient.ascent import Ascent
from robustfg.attacks.objectives.logits import Objective
from robustfg.evaluation.open_set import accepted_at, ranking

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """Clean test samples of the known classes under one detector."""

    score: Values
    """``(N,)``."""
    correct: NDArray[np.bool_]
    """``(N,)`` whether the class is predicted right."""


@dataclass(frozen=True)
class UnknownScores:
    """What became of ``M`` unknown images, in order of their ids; the same on every process."""

    index: NDArray[np.int64]
    """``(M,)`` ids."""
    prediction: NDArray[np.int64]
    """``(M,)`` the class that the clean image is taken for."""
    clean: Mapping[str, Values]
    """``(M,)`` scores by detector."""
    least: Mapping[str, Values]
    """``(M,)`` the smallest score that was reached inside the threat model, by detector; only those attacked."""

    def table(self, name: str) -> pa.Table:
        """A row an image: ``unknown`` (the set's name), index, prediction, ``score/…`` and ``least/…``."""
        scores = {f"score/{detector}": values for detector, values in self.clean.items()}
        scores |= {f"least/{detector}": values for detector, values in self.least.items()}
        columns = {"index": self.index, "prediction": self.prediction, **scores}
        return pa.table({"unknown": [name] * len(self.index), **columns})


def pushed(attack: Ascent, accepted: Objective, detector: str) -> Ascent:
    """An attack that pushes any image to be accepted by a detector, and keeps the least score it finds.

    Args:
        attack: how to climb, and inside which threat model.
        accepted: what to climb, such as ``Accepted`` at the smallest threshold of interest: its sign tells whether
            the image is accepted there, where the search ends; the least score answers for every larger threshold.
        detector: its name.
    """
    return replace(attack, name=f"acceptance/{detector}", objective=accepted, decision=accepted, targets=None)


def unknown_block(
    found: UnknownScores, known: Mapping[str, Known], thresholds: Mapping[str, Mapping[float, float]]
) -> dict[str, Any]:
    """One set of unknown images as it stands in ``summary.json``.

    Args:
        found: its scores.
        known: the clean test samples, by detector.
        thresholds: of every detector, tau by the false-positive rate alpha it was calibrated for.

    Returns:
        ``n``, and ``detectors`` by name, each with ``clean`` and, where it was attacked, ``attacked``: the figures of
        ``ranking`` and ``accepted``, those of ``accepted_at``. Known samples are clean in both: what an attack on them
        does is told elsewhere.
    """
    detectors = {}
    for name, clean in found.clean.items():
        side = {"clean": clean} | ({"attacked": found.least[name]} if name in found.least else {})
        detectors[name] = {
            state: {
                **ranking(known[name].score, known[name].correct, scores),
                "accepted": accepted_at(known[name].score, known[name].correct, scores, thresholds[name]),
            }
            for state, scores in side.items()
        }
    return {"n": len(found.index), "detectors": detectors}
