"""Learned variances that cannot collapse."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.errors import UserError

FLOOR = 1e-4
"""What the authors' Caffe release adds to every variance. It bounds log|Sigma| below and weights of distances above."""

UNIT = math.log(math.e - 1)
"""Where softplus is 1."""


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
        """Sets the numbers. Those at the floor or below become a thousandth of the initial variance more than it."""
        share = ((values.double() - self.floor) / (self.initial - self.floor)).clamp_min(1e-3)
        self.raw.copy_(share + torch.log(-torch.expm1(-share)) - UNIT)
