"""Learned variances that cannot collapse."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError

FLOOR = 0.01
"""Bounds log|Sigma| below, and above what the gradient on a mean is multiplied by, 1/variance.

Steps on a mean at learning rate r and loss weight w are stable while r w / variance < 2 (without momentum): at the rate
0.1 and the likelihood's weight 0.1 the floor keeps that at 1. The 1e-4 of the authors' Caffe release makes it 100.
"""

UNIT = math.log(math.e - 1)
"""Where softplus is 1."""

REMAINDER = 1e-3
"""Share of the initial variance that a variance which is set keeps above the floor: on it, it could not learn."""


class Variances(nn.Module):
    """Positive numbers v = floor + (initial - floor) * softplus(raw + softplus^-1(1)).

    ``raw`` starts at 0, so that weight decay draws to the initial variance. Softplus grows linearly: one step against
    far-off features cannot overflow, as it can with an exponential.

    Args:
        shape: of the numbers.
        initial: what all of them are at first.
        floor: which they never fall below.
    """

    def __init__(self, *shape: int, initial: float, floor: float) -> None:
        super().__init__()
        if not floor > 0:
            raise UserError(f"loss.covariance.floor must be > 0, got {floor}")
        if not initial > floor:
            raise UserError(f"loss.covariance.initial must be > loss.covariance.floor, got {initial} and {floor}")
        self.initial, self.floor = initial, floor
        self.raw = nn.Parameter(torch.zeros(shape))

    def values(self) -> Tensor:
        """The numbers, in the shape given."""
        return self.floor + (self.initial - self.floor) * F.softplus(self.raw + UNIT)

    @torch.no_grad()
    def become(self, values: Tensor) -> None:
        """Sets the numbers; those at the floor or below keep a remainder above it."""
        share = ((values.double() - self.floor) / (self.initial - self.floor)).clamp_min(REMAINDER)
        self.raw.copy_(share + torch.log(-torch.expm1(-share)) - UNIT)
