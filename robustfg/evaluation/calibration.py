"""Does a model's confidence mean what it says? On clean and on attacked input, from the records' columns."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from robustfg.evaluation.aggregation import worst_rows
from robustfg.evaluation.records import CLEAN, column

SOFTMAX = "softmax"
"""Prefix of the columns."""
BINS = 15
"""As in Guo et al. (ICML 2017)."""
Values = NDArray[np.float64]


def softmax_scores(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """What the records keep of the softmax of every sample, ``(B,)`` float64 each, by the column's name.

    ``confidence``: the largest probability; ``nll``: minus the log of the true class's; ``brier``: the squared distance
    of all of them to one for the true class and 0 for the others, from 0 to 2.

    Args:
        logits: ``(B, K)``.
        label: ``(B,)`` true classes.
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    true = label[:, None]
    return {
        f"{SOFTMAX}/confidence": p.amax(1),
        f"{SOFTMAX}/nll": -log_p.gather(1, true)[:, 0],
        f"{SOFTMAX}/brier": p.square().sum(1) - 2 * p.gather(1, true)[:, 0] + 1,
    }


def calibration_of(table: pa.Table, attacks: Iterable[str], also: Iterable[str] = ()) -> dict[str, Any]:
    """The calibration as it stands in ``summary.json``: ``clean``, of every attack in ``attacks``, and ``worst_case``.

    Of several images of a sample that one with the smallest margin counts. For each, ``n``, ``accuracy``, the mean
    ``confidence``, ``ece``, ``nll``, ``brier`` and the ``reliability`` of every bin of confidence that is not empty:
    its samples, their mean confidence and their accuracy.

    Args:
        table: all rows.
        attacks: names of the suite.
        also: further attacks that count in the worst case.
    """
    attacks = list(attacks)
    return {
        "bins": BINS,
        "clean": _calibration(table, [CLEAN]),
        "attacks": {name: _calibration(table, [name]) for name in attacks},
        "worst_case": _calibration(table, [CLEAN, *attacks, *also]),
    }


def _calibration(table: pa.Table, attacks: Iterable[str]) -> dict[str, Any]:
    rows = worst_rows(table, attacks)
    confidence, nll, brier = (column(table, f"{SOFTMAX}/{name}")[rows] for name in ("confidence", "nll", "brier"))
    correct = column(table, "correct")[rows].astype(np.float64)
    bins = reliability(confidence, correct)
    return {
        "n": len(rows),
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "ece": sum(n * abs(mean - share) for n, mean, share in bins) / len(rows),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
        "reliability": [[n, round(mean, 6), round(share, 6)] for n, mean, share in bins],
    }


def reliability(confidence: Values, correct: Values, bins: int = BINS) -> list[tuple[int, float, float]]:
    """Samples, mean confidence and accuracy of every bin of equal width that is not empty, the lowest first.

    A bin holds its lower end; the last one holds its upper end, too, so that a confidence of exactly 1, to which
    saturated models round, is not alone in a bin of its own.

    Args:
        confidence: ``(N,)`` in [0, 1].
        correct: ``(N,)``, 1 where the prediction is right and 0 where not.
        bins: how many.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights, minlength=bins) for weights in (confidence, correct))
    return [
        (int(n), float(sure / n), float(right / n)) for n, sure, right in zip(count, *sums, strict=True) if n
    ]  # fmt: skip
