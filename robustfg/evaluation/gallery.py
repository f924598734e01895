"""A few broken samples kept for the page: clean image, perturbation, and what it led to."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from robustfg.core.files import write_atomically
from robustfg.core.precision import exact_arithmetic
from robustfg.data.samples import Samples
from robustfg.evaluation.aggregation import correct_per_sample
from robustfg.evaluation.measure import Classify
from robustfg.evaluation.records import CLEAN, Perturbation, column


def shown_in_gallery(
    table: pa.Table, attacks: Iterable[str], worst: Mapping[int, float], count: int
) -> dict[int, float]:
    """The first samples that are right when clean and broken by an attack, with the margin of their worst image.

    Args:
        table: all rows.
        attacks: names of the suite.
        worst: the smallest margin of every sample whose perturbation is kept here, by its id.
        count: how many to show.
    """
    broken = correct_per_sample(table, [CLEAN]) & ~correct_per_sample(table, attacks)
    first = np.unique(column(table, "index"))[broken].tolist()[:count]
    return {index: worst[index] for index in first if index in worst}


def write_gallery(
    path: Path,
    model: Classify,
    device: torch.device,
    samples: Samples,
    table: pa.Table,
    broken: Mapping[int, Perturbation],
) -> None:
    """Writes an archive with one entry a sample: index, label, prediction, attack, clean image and delta.

    Where the model has a map of its evidence, the first one is there too: ``map`` its name, ``clean_map`` and
    ``attacked_map``, each ``(n, h, w)``.

    Args:
        path: the file.
        model: what was attacked.
        device: where it lies.
        samples: the evaluated split.
        table: all rows.
        broken: a perturbation of every sample to show, by its id.
    """
    where = {int(position): item for item, position in enumerate(samples.positions)}
    shown = [broken[index] for index in sorted(broken)]
    delta = np.stack([p.delta / 255 if p.delta.dtype == np.int8 else p.delta for p in shown]).astype(np.float32)
    clean = torch.stack([samples[where[p.index]].image for p in shown])
    maps = _maps(model, clean.to(device), (clean + torch.from_numpy(delta)).clamp(0, 1).to(device))
    with write_atomically(path) as file:
        np.savez_compressed(
            file,
            index=[p.index for p in shown],
            label=[int(samples.labels[where[p.index]]) for p in shown],
            prediction=[_prediction(table, p) for p in shown],
            attack=[p.attack for p in shown],
            clean=clean.numpy(),
            delta=delta,
            **maps,
        )


def _maps(model: Classify, clean: Tensor, attacked: Tensor) -> dict[str, Any]:
    """The first map that has more than one position, on both; nothing where there is none."""
    with exact_arithmetic(), torch.no_grad():
        before, after = (model.explain(image.clone())[1] for image in (clean, attacked))
    for name, cells in before.items():
        if cells[0].numel() > 1:
            return {
                "map": name,
                "clean_map": cells.float().cpu().numpy(),
                "attacked_map": after[name].float().cpu().numpy(),
            }
    return {}


def _prediction(table: pa.Table, broken: Perturbation) -> int:
    """The wrong class that a perturbation led to."""
    row = (column(table, "index") == broken.index) & (column(table, "attack") == broken.attack)
    return int(column(table, "prediction")[row & (column(table, "restart") == broken.restart)][0])
