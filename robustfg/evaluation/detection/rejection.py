"""What rejecting costs: attackers who get right images rejected, and rejections by the size of the perturbation."""

from typing import Any

import numpy as np

from robustfg.evaluation.detection.readings import Images, Readings
from robustfg.evaluation.statistics import wilson

STRATA = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Borders of the sizes, as shares of the largest perturbation allowed."""


def forced(readings: Readings, images: Images, tau: float) -> dict[str, Any]:
    """Of the samples that are right and accepted when clean, those with an attacked image still right and rejected.

    A denial of service. Where no attack aimed at it, it is what the others happened to do.
    """
    accepted = readings.right & (readings.clean <= tau)
    hit = np.zeros(len(accepted), bool)
    hit[images.sample[~images.wrong & (images.score > tau)]] = True
    return _share(int((accepted & hit).sum()), int(accepted.sum()))


def by_size(readings: Readings, images: Images, tau: float) -> dict[str, Any]:
    """Rejected images among right clean ones (size 0) and among attacked ones by size, each with its upper border.

    A small perturbation that is rejected is a cost, a large one a success (Chen et al. 2023).
    """
    clean = readings.clean[readings.right]
    found = {"0": _share(int((clean > tau).sum()), len(clean))}
    stratum = np.clip(np.ceil(images.size * (len(STRATA) - 1) - 1e-6), 0, len(STRATA) - 1)
    for place, border in enumerate(STRATA[1:], start=1):
        inside = images.score[(stratum == place) | ((stratum == 0) & (place == 1))]
        found[f"{border:g}"] = _share(int((inside > tau).sum()), len(inside))
    return found


def _share(rejected: int, n: int) -> dict[str, Any]:
    low, high = wilson(rejected, n)
    return {
        "rejected": rejected,
        "n": n,
        "share": rejected / n if n else None,
        "ci95": [round(low, 4), round(high, 4)],
    }
