"""Thresholds from calibration scores, and the false-positive rates to be expected of them.

The k-th largest of n calibration scores, k = floor(fpr (n + 1)), is the lowest that is rejected (``threshold_at``). A
new input from where they came is then rejected at a rate that is distributed like Beta(k, n + 1 - k), whatever the
distribution of the scores; a lower one where scores are tied.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, betabinom

from robustfg.detectors.threshold import rejected_of

Values = NDArray[np.float64]


def needed(fpr: float) -> int:
    """Calibration scores without which nothing may be rejected at this rate."""
    least = max(1, math.ceil(1 / fpr) - 2)
    return next(n for n in itertools.count(least) if rejected_of(n, fpr))


def thresholds(score: Values, weight: NDArray[np.int64], fpr: float) -> Values:
    """What ``detectors.threshold_at`` gives in every redraw, ``(R,)``: just below the k-th largest, or it where tied.

    Args:
        score: ``(n,)`` calibration scores in float32.
        weight: ``(R, n)`` how often each counts.
        fpr: false-positive rate.
    """
    ordered, place = np.unique(-score, return_inverse=True)
    count = np.zeros((len(weight), len(ordered)), np.int64)
    for column, to in enumerate(place):
        count[:, to] += weight[:, column]
    above = np.cumsum(count, 1)
    k = np.array([rejected_of(int(n), fpr) for n in weight.sum(1)])
    if not k.any():
        return np.full(len(weight), np.inf)
    chosen = (above >= k[:, None]).argmax(1)
    lowest = -ordered[chosen]
    below = np.nextafter(lowest.astype(np.float32), np.float32(-np.inf)).astype(float)
    tied = np.take_along_axis(above, chosen[:, None], 1)[:, 0] > k
    return np.where(k > 0, np.where(tied, lowest, below), np.inf)


def keeping(score: Values, share: float) -> float:
    """The smallest threshold that accepts at least this share of the scores; -inf where there are none."""
    ordered = np.sort(score)
    kept = math.ceil(share * len(ordered) - 1e-9)
    return float(ordered[kept - 1]) if kept else -math.inf


def expected_rate(n: int, fpr: float, confidence: float = 0.95) -> list[float] | None:
    """Interval of the true false-positive rate at a threshold from n scores; None where nothing is rejected."""
    k = rejected_of(n, fpr)
    if k == 0:
        return None
    low, high = beta(k, n + 1 - k).ppf(((1 - confidence) / 2, (1 + confidence) / 2))
    return [round(float(low), 4), round(float(high), 4)]


def surprise(rejected: int, m: int, n: int, fpr: float, *, tied: bool = False) -> float:
    """p-value of so many rejections among m normal inputs, at a threshold from n scores (beta-binomial).

    Two-sided; one-sided where scores are ``tied``, which makes fewer rejections no surprise.
    """
    k = rejected_of(n, fpr)
    law = betabinom(m, k, n + 1 - k)
    more = law.sf(rejected - 1)
    return float(more if tied else min(1.0, 2 * min(law.cdf(rejected), more)))
