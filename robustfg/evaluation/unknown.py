"""Unknown classes: are their images rejected, clean, and attacked so that they be accepted?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfg.attacks import Attack
from robustfg.attacks.ascent import Ascent
from robustfg.attacks.objectives import Objective
from robustfg.evaluation.gather import gathered
from robustfg.evaluation.open_set import accepted_at, ranking
from robustfg.models.arithmetic import exact_arithmetic
from robustfg.types import Batch

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


def measure_unknown(watched: nn.Module, batches: Iterable[Batch], attacks: Mapping[str, Attack]) -> UnknownScores:
    """Scores of unknown images, clean and attacked; every process brings its share.

    Args:
        watched: in eval mode; its ``Output.scores`` has every detector.
        batches: this process's images, on the model's device; labels are ignored.
        attacks: by detector, such as ``pushed`` gives.

    Raises:
        RuntimeError: if an image was measured twice.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        with exact_arithmetic():
            rows += _measured(watched, Batch(*(tensor.clone() for tensor in batch)), attacks)
    everything = sorted((row for part in gathered(rows) for row in part), key=lambda row: row["index"])
    index = np.array([row["index"] for row in everything], np.int64)
    if len(np.unique(index)) < len(index):
        raise RuntimeError(f"unknown images: {len(index)} records for {len(np.unique(index))} images")
    return UnknownScores(
        index=index,
        prediction=np.array([row["prediction"] for row in everything], np.int64),
        clean=_columns(everything, "score"),
        least=_columns(everything, "least"),
    )


def _measured(watched: nn.Module, batch: Batch, attacks: Mapping[str, Attack]) -> list[dict[str, Any]]:
    with torch.no_grad():
        output = watched(batch.image)
    scores = {name: values.double() for name, values in output.scores.items()}
    nothing = torch.zeros_like(batch.label)  # attacks ask for a label; theirs ignore it
    least = {
        name: _least(watched, name, attack, batch._replace(label=nothing), scores[name], output.logits)
        for name, attack in attacks.items()
    }
    columns = {"score": scores, "least": least}
    return [
        {"index": index, "prediction": prediction}
        | {kind: {name: float(values[place]) for name, values in found.items()} for kind, found in columns.items()}
        for place, (index, prediction) in enumerate(
            zip(batch.index.tolist(), output.logits.argmax(1).tolist(), strict=True)
        )
    ]


def _least(watched: nn.Module, name: str, attack: Attack, batch: Batch, clean: Tensor, logits: Tensor) -> Tensor:
    """The smallest of the clean score and those of the images that every round ends with, ``(B,)``."""
    least = clean
    for attempt in attack.attempts(watched, batch.image, batch.label, batch.index, logits=logits):
        with torch.no_grad():
            least = torch.minimum(least, watched(attempt.image).scores[name].double())
    return least


def _columns(rows: list[dict[str, Any]], kind: str) -> dict[str, Values]:
    return {name: np.array([row[kind][name] for row in rows]) for name in (rows[0][kind] if rows else ())}


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
