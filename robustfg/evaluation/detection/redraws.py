"""Bootstrap redraws: how often each sample counts in each, and the intervals that follow."""

import numpy as np
from numpy.typing import NDArray

DRAWS = 500
"""Enough for 95 % intervals to two digits."""


def redraws(strata: NDArray[np.int64], draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each sample counts in each redraw, ``(draws, N)``: as many of every stratum as there are.

    Args:
        strata: ``(N,)``, such as the classes.
        draws: number of redraws.
        generator: draws.
    """
    counts = np.zeros((draws, len(strata)), np.int64)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        counts[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return counts


def interval(values: NDArray[np.float64], confidence: float = 0.95) -> list[float] | None:
    """Percentile interval of what the redraws gave; None where none gave a number."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, ((1 - confidence) / 2, (1 + confidence) / 2))
    return [round(float(low), 4), round(float(high), 4)]
