"""The threshold at which a detector rejects a chosen share of clean inputs."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from robustfg.core.errors import UserError


def rejected_of(n: int, fpr: float) -> int:
    """K = floor(fpr (n + 1)), the number of n calibration scores that the threshold rejects."""
    return math.floor(Fraction(str(float(fpr))) * (n + 1))  # the number as typed: 0.29 * 100 is 29


def threshold_at(scores: Tensor, fpr: float) -> float:
    """The threshold tau of a false-positive rate; an input is accepted where ``score <= tau``.

    With k = floor(fpr (n + 1)), tau is the number just below the k-th largest of the n scores: exactly k of them lie
    above, and a new clean input is rejected with a probability that is Beta(k, n + 1 - k) distributed over
    calibrations, k / (n + 1) <= ``fpr`` on average. Where the k-th largest has an equal below it, tau is that score
    itself, and fewer than k lie above.

    Where ``fpr`` < 1 / (n + 1), k is 0: no calibration of this size supports rejecting anything at that level, and tau
    is +inf, which accepts everything. It does not say that all inputs are normal; calibrate on more samples.

    Args:
        scores: of clean inputs that nothing was fitted on, ``(n,)``, in any order.
        fpr: share of clean inputs that may be rejected, in [0, 1).

    Raises:
        UserError: for another rate, and for scores that are none or hold NaN.
    """
    if not 0 <= fpr < 1:
        raise UserError(f"the false-positive rate must be in [0, 1), got {fpr}")
    if scores.dim() != 1 or not len(scores):
        raise UserError(f"a threshold needs the scores of some calibration samples, got shape {tuple(scores.shape)}")
    if bool(scores.isnan().any()):
        raise UserError(f"{int(scores.isnan().sum())} of {len(scores)} calibration scores are not a number")
    allowed = rejected_of(len(scores), fpr)
    if allowed == 0:
        return math.inf
    ordered = scores.sort(descending=True).values
    largest = ordered[allowed - 1]
    if allowed < len(scores) and bool(ordered[allowed] == largest):
        return float(largest)
    return float(torch.nextafter(largest, torch.full_like(largest, -torch.inf)))
