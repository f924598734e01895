"""A few broken samples kept for the page: clean image, perturbation, and what it led to."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from robustfg.data.samples import Samples
from robustfg.evaluation.records import Perturbation, column


def write_gallery(path: Path, samples: Samples, table: pa.Table, broken: Mapping[int, Perturbation]) -> None:
    """Writes an archive with one entry a sample: index, label, prediction, attack, clean image and delta.

    Args:
        path: the file.
        samples: the evaluated split.
        table: all rows.
        broken: a perturbation of every sample to show, by its id.
    """
    where = {int(position): item for item, position in enumerate(samples.positions)}
    shown = [broken[index] for index in sorted(broken)]
    delta = [p.delta / 255 if p.delta.dtype == np.int8 else p.delta for p in shown]
    np.savez_compressed(
        path,
        index=[p.index for p in shown],
        label=[int(samples.labels[where[p.index]]) for p in shown],
        prediction=[_prediction(table, p) for p in shown],
        attack=[p.attack for p in shown],
        clean=np.stack([samples[where[p.index]].image.numpy() for p in shown]),
        delta=np.stack(delta).astype(np.float32),
    )


def _prediction(table: pa.Table, broken: Perturbation) -> int:
    """The wrong class that a perturbation led to."""
    row = (column(table, "index") == broken.index) & (column(table, "attack") == broken.attack)
    return int(column(table, "prediction")[row & (column(table, "restart") == broken.restart)][0])
