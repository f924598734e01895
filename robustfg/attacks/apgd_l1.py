"""APGD in l1 (Croce & Hein 2021, "Mind the box"): steps that move ever fewer coordinates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.apgd import AutomaticAscent, Track
from robustfg.attacks.balls import L1
from robustfg.errors import UserError

ROUNDING = 1e-6
"""Pixel values nearer than this are the same: projections leave remainders of the order of the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class L1APGD(AutomaticAscent):
    """Signed steps along the k largest components of the gradient, projected to ball and box together.

    Every 4 % of the steps, k becomes two thirds of the number of pixel values that the best point has changed. Where
    that made k smaller by more than 5 %, the search goes back to the best point with steps of epsilon; elsewhere steps
    become shorter by the factor 1.5, down to epsilon / 10. The first k is a fifth of all values.

    Args:
        box_aware: choose the k components among the pixel values that the box lets move. The paper does not: its steps
            are lost where the largest components belong to values at 0 or 1 already (False).
    """

    threat: L1
    box_aware: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.norm != "l1":
            raise UserError(f"L1APGD is for l1, got {self.threat.norm}: use APGD")

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "box_aware": self.box_aware}

    @property
    def checkpoints(self) -> tuple[int, ...]:
        period = math.ceil(self.steps / 25)
        return tuple(range(period, self.steps, period))

    def _begun(self, track: Track, clean: Tensor) -> Track:
        """``mark`` holds 1.5 k."""
        size = clean.shape[1:].numel()
        return track._replace(
            length=torch.full_like(track.value, self.threat.radius), mark=torch.full_like(track.value, 1.5 * size / 5)
        )

    def _checked(self, track: Track, clean: Tensor, period: int) -> Track:
        changed = ((track.best - clean).abs() > ROUNDING).flatten(1).sum(1).to(track.mark.dtype)
        sparser = changed < 0.95 * track.mark
        shorter = (track.length / 1.5).clamp_min(self.threat.radius / 10)
        return track.back_to_best(sparser)._replace(
            length=torch.where(sparser, self.threat.radius, shorter), mark=changed
        )

    def _moved(self, track: Track, clean: Tensor, taken: int) -> Tensor:
        gradient = track.gradient
        if self.box_aware:
            blocked = torch.where(gradient > 0, track.current > 1 - ROUNDING, track.current < ROUNDING)
            gradient = torch.where(blocked, 0, gradient)
        flat = gradient.flatten(1)
        count = (track.mark / 1.5).long().clamp(1, flat.shape[1])
        size = flat.abs()
        least = size.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
        step = torch.where(size >= least, flat.sign(), 0)
        step = track.length[:, None] * step / step.abs().sum(1, keepdim=True).clamp_min(1)
        return self.threat.project(track.current + step.view_as(clean), clean)
