"""Unknown images in the record of evidence: measured once, also where an evaluation was interrupted."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robustfg.attacks import Attack
from robustfg.core.precision import exact_arithmetic
from robustfg.core.types import Batch
from robustfg.evaluation.pace import Pace
from robustfg.evaluation.records import SCHEMA, RecordStore, Row
from robustfg.evaluation.unknown import UnknownScores, Values


def clean_rows(name: str) -> str:
    """What the rows of a set's clean images are called in the record."""
    return f"unknown/{name}/clean"


def attacked_rows(name: str, detector: str) -> str:
    """What the rows of a set's images are called that were pushed to be accepted by a detector."""
    return f"unknown/{name}/accepted/{detector}"


def measure_unknown(
    watched: nn.Module, batches: Iterable[Batch], attacks: Mapping[str, Attack], store: RecordStore, name: str
) -> None:
    """Writes scores of unknown images, clean and attacked, to a record, but for those that it already has.

    Args:
        watched: in eval mode; its ``Output.scores`` has every detector.
        batches: this process's images, on the model's device; labels are ignored.
        attacks: by detector, such as ``pushed`` gives.
        store: knows the fingerprints of ``clean_rows`` and ``attacked_rows``.
        name: of the set.
    """
    for batch in batches:
        with exact_arithmetic():
            _measure(watched, Batch(*(tensor.clone() for tensor in batch)), attacks, store, name)


def _measure(watched: nn.Module, batch: Batch, attacks: Mapping[str, Attack], store: RecordStore, name: str) -> None:
    def todo(kind: str) -> Tensor:
        return torch.tensor([(kind, i) not in store.done for i in batch.index.tolist()], device=batch.index.device)

    unread = todo(clean_rows(name))
    unattacked = {detector: todo(attacked_rows(name, detector)) for detector in attacks}
    if not any(bool(mask.any()) for mask in (unread, *unattacked.values())):
        return
    pace = Pace.of(watched, batch.image)
    with torch.no_grad():
        output = watched(batch.image)
    prediction = output.logits.argmax(1)
    scores = {detector: values.double() for detector, values in output.scores.items()}
    told = {f"score/{detector}": values[unread] for detector, values in scores.items()}
    store.add(_rows(clean_rows(name), batch.index[unread], prediction[unread], told), [])
    for detector, new in unattacked.items():
        if bool(new.any()):
            label = torch.zeros_like(batch.label[new])  # attacks ask for one; theirs ignore it
            part = Batch(batch.image[new], label, batch.index[new])
            columns = (*part, scores[detector][new], output.logits[new], prediction[new])
            size = pace.portion(attacks[detector], 0)
            for image, label, index, clean, logits, predicted in zip(
                *(torch.split(column, size) for column in columns), strict=True
            ):
                some = Batch(image, label, index)
                found = {f"least/{detector}": _least(watched, detector, attacks[detector], some, clean, logits)}
                store.add(_rows(attacked_rows(name, detector), index, predicted, found), [])


def _rows(kind: str, index: Tensor, prediction: Tensor, told: Mapping[str, Tensor]) -> list[Row]:
    """Rows without what only a label would tell."""
    nothing = dict.fromkeys(SCHEMA.names) | {"attack": kind, "restart": 0}
    values = zip(*(column.tolist() for column in told.values()), strict=True)
    return [
        nothing | {"index": i, "prediction": predicted, "evidence": dict(zip(told, found, strict=True))}
        for i, predicted, found in zip(index.tolist(), prediction.tolist(), values, strict=True)
    ]


def _least(watched: nn.Module, name: str, attack: Attack, batch: Batch, clean: Tensor, logits: Tensor) -> Tensor:
    """The smallest of the clean score and those of the images that every round ends with, ``(B,)``."""
    least = clean
    for attempt in attack.attempts(watched, batch.image, batch.label, batch.index, logits=logits):
        with torch.no_grad():
            least = torch.minimum(least, watched(attempt.image).scores[name].double())
    return least


def unknown_scores(rows: Iterable[Row], name: str, count: int, attacked: Iterable[str]) -> UnknownScores:
    """What the record tells of a set of unknown images.

    Args:
        rows: of all processes.
        name: of the set.
        count: number of its images, whose ids count from 0.
        attacked: detectors by which they were pushed to be accepted.

    Raises:
        RuntimeError: unless every image is there exactly once, clean and for every such detector.
    """
    ordered = sorted(rows, key=lambda row: int(row["index"]))
    kinds = [clean_rows(name), *(attacked_rows(name, detector) for detector in attacked)]
    clean, *pushed = ([row for row in ordered if row["attack"] == kind] for kind in kinds)
    for kind, found in zip(kinds, (clean, *pushed), strict=True):
        if [row["index"] for row in found] != list(range(count)):
            raise RuntimeError(f"{kind}: {len(found)} records for {count} images")
    least = (_columns(found, "least/") for found in pushed)
    return UnknownScores(
        index=np.arange(count),
        prediction=np.array([row["prediction"] for row in clean], np.int64),
        clean=_columns(clean, "score/"),
        least={detector: values for column in least for detector, values in column.items()},
    )


def _columns(rows: list[Row], kind: str) -> dict[str, Values]:
    names = rows[0]["evidence"] if rows else ()
    return {name.removeprefix(kind): np.array([row["evidence"][name] for row in rows], float) for name in names}
