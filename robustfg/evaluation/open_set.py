"""How well scores tell unknown classes from known ones: threshold-free figures, and shares at given thresholds."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfg.evaluation.statistics import counted

Values = NDArray[np.float64]
FOUND = 0.95
"""Share at which false-positive rates are read."""


def ranking(known: Values, correct: NDArray[np.bool_], unknown: Values) -> dict[str, float]:
    """Figures over all thresholds; an input is accepted where its score is at most the threshold.

    Args:
        known: ``(N,)`` scores of inputs of known classes, higher is more abnormal.
        correct: ``(N,)`` whether their class is predicted right.
        unknown: ``(M,)`` scores of inputs of unknown classes.

    Returns:
        - ``auroc``: the chance that an unknown input scores above a known one; ties count half.
        - ``oscr``: area under the open-set classification rate (Dhamija et al., NeurIPS 2018), which is the share of
          known inputs that are accepted and classified right, over the share of unknown ones that are accepted. It is
          ``auroc`` with wrong predictions counted as lost, and at most the accuracy.
        - ``unknown_accepted_at_95_known_accepted``: share of unknown inputs at or below the smallest threshold that
          accepts 95 % of the known ones. This is "FPR at 95 % TPR" where known inputs are the positives, as in
          Hendrycks and Gimpel (ICLR 2017) and most of the literature on unknown classes.
        - ``known_rejected_at_95_unknown_rejected``: share of known inputs at or above the largest score that 95 % of
          the unknown ones reach. This is "FPR at 95 % TPR" where anomalies are the positives, as in attack detection.
    """
    won = below(known, unknown)
    accept = np.sort(known)[math.ceil(FOUND * len(known) - 1e-9) - 1]
    reject = np.sort(unknown)[len(unknown) - math.ceil(FOUND * len(unknown) - 1e-9)]
    return {
        "auroc": float(won.mean()),
        "oscr": float((won * correct).mean()),
        "unknown_accepted_at_95_known_accepted": float((unknown <= accept).mean()),
        "known_rejected_at_95_unknown_rejected": float((known >= reject).mean()),
    }


def below(known: Values, unknown: Values) -> Values:
    """For every known score, the share of unknown ones above it, those equal to it counted half, ``(N,)``."""
    ordered = np.sort(unknown)
    above = len(unknown) - np.searchsorted(ordered, known, "right")
    at_least = len(unknown) - np.searchsorted(ordered, known, "left")
    share: Values = (above + at_least) / (2 * len(unknown))
    return share


def accepted_at(
    known: Values, correct: NDArray[np.bool_], unknown: Values, thresholds: Mapping[float, float]
) -> list[dict[str, Any]]:
    """Shares at thresholds that were calibrated elsewhere.

    Args:
        known: as of ``ranking``.
        correct: as of ``ranking``.
        unknown: as of ``ranking``.
        thresholds: tau by the false-positive rate alpha it was calibrated for; infinite where it rejects nothing.

    Returns:
        By rising ``alpha``: ``tau`` (None where infinite), ``unknown_accepted`` with its interval, and over known
        inputs ``known_accepted`` and ``known_accepted_and_right``.
    """
    told = []
    for alpha, tau in sorted(thresholds.items()):
        accepts = known <= tau
        shares = {
            "unknown_accepted": unknown <= tau,
            "known_accepted": accepts,
            "known_accepted_and_right": accepts & correct,
        }
        told.append(
            {"alpha": alpha, "tau": tau if math.isfinite(tau) else None}
            | {name: share_of(chosen) for name, chosen in shares.items()}
        )
    return told


def share_of(chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Count, number, share and 95 % Wilson interval."""
    found = counted(int(chosen.sum()), len(chosen))
    return {"count": found["correct"], "n": found["n"], "share": found["accuracy"], "ci95": found["ci95"]}
