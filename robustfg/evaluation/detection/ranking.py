"""How well scores rank anomalies above normal inputs: exact areas and rates, samples weighted at will."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

FOUND = 0.95
"""Share of the anomalies to be found where the false-positive rate is read (Liang et al. 2018)."""


def ranking(
    positive: Values, negative: Values, weights: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
) -> dict[str, Values]:
    """Threshold-free figures; scores equal to each other stand on one threshold, which makes all of them exact.

    Args:
        positive: ``(P,)`` scores of anomalies, which should be high.
        negative: ``(N,)`` scores of normal inputs.
        weights: how often each counts, ``(R, P)`` and ``(R, N)``, for R redraws; None: once.

    Returns:
        Each ``(R,)`` and NaN where one side is empty: ``auroc``, the chance that an anomaly scores above a normal input
        where ties count half (Mann and Whitney 1947); ``aupr_out`` and ``aupr_in``, average precision where anomalies
        or normal inputs are to be found; ``fpr_at_95_tpr``, the smallest share of normal inputs at or above a threshold
        that finds 95 % of the anomalies.
    """
    if weights is None:
        weights = np.ones((1, len(positive)), np.int64), np.ones((1, len(negative)), np.int64)
    score = np.concatenate([positive, negative])
    order = np.argsort(-score, kind="stable")
    last = np.append(score[order][1:] != score[order][:-1], True)[: len(order)]  # of those with the same score
    true, false = (
        np.cumsum(np.concatenate(columns, 1)[:, order], 1)[:, last].astype(float)
        for columns in (
            (weights[0], np.zeros_like(weights[1])),
            (np.zeros_like(weights[0]), weights[1]),
        )
    )  # found so far, and falsely so, from the highest threshold down
    if not true.shape[1]:
        return dict.fromkeys(("auroc", "aupr_out", "aupr_in", "fpr_at_95_tpr"), np.full(len(true), np.nan))
    positives, negatives = true[:, -1:], false[:, -1:]
    new_true, new_false = (np.diff(found, axis=1, prepend=0.0) for found in (true, false))
    left_true, left_false = positives - true + new_true, negatives - false + new_false
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "auroc": (new_false * (true - new_true / 2)).sum(1, keepdims=True) / (positives * negatives),
            "aupr_out": _precision(new_true, true, false) / positives,
            "aupr_in": _precision(new_false, left_false, left_true) / negatives,
            "fpr_at_95_tpr": _first(true >= FOUND * positives - 1e-9, false) / negatives,
        }
    both = ((positives > 0) & (negatives > 0))[:, 0]
    return {name: np.where(both, values[:, 0], np.nan) for name, values in found.items()}


def detected(score: Values, tau: Values, weight: NDArray[np.int64] | None = None) -> Values:
    """Share of inputs that are rejected, score > tau, ``(R,)``; NaN where none counts.

    Args:
        score: ``(P,)``.
        tau: ``(R,)`` thresholds.
        weight: ``(R, P)`` how often each counts; None: once.
    """
    order = np.argsort(score, kind="stable")
    ordered = np.broadcast_to(np.ones(len(score)), (len(tau), len(score))) if weight is None else weight[:, order]
    below = np.concatenate([np.zeros((len(tau), 1)), np.cumsum(ordered, 1)], 1)
    accepted = np.take_along_axis(below, np.searchsorted(score[order], tau, side="right")[:, None], 1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Values = 1 - accepted / below[:, -1]
    return share


def _precision(new: Values, found: Values, falsely: Values) -> Values:
    """Sum over thresholds of what is new there times the precision."""
    total: Values = np.where(new > 0, new * found / np.maximum(found + falsely, 1), 0.0).sum(1, keepdims=True)
    return total


def _first(condition: NDArray[np.bool_], values: Values) -> Values:
    """The values at the first threshold that satisfies the condition, ``(R, 1)``."""
    return np.take_along_axis(values, condition.argmax(1)[:, None], 1)
