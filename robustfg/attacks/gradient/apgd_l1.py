"""APGD in l1 (Croce & Hein 2021, "Mind the box"): steps that move ever fewer coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.gradient.apgd import AutomaticAscent, Track
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import L1
from robustfg.core.errors import UserError

ROUNDING = 1e-6
"""Pixel values nearer than this are the same: projections leave remainders of the order of the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class L1APGD(AutomaticAscent):
    """Signed steps along the k largest components of the gradient, projected to ball and box together.

    Every 4 % of the steps, k becomes two thirds of the number of pixel values that the best point has changed. Where
    that number fell by more than 5 %, the search goes back to the best point with steps of epsilon; elsewhere steps
    become shorter by the factor 1.5, down to epsilon / 10. The first k is a fifth of all values, and the first number
    is compared with all of them, as in the released code (in the paper with 1.5 times the first k). A random start is
    normal noise projected to ball and box, as there.

    Args:
        box_aware: choose the k components among the pixel values that the box lets move. The paper does not: its steps
            are lost where the largest components belong to values at 0 or 1 already (False).
        larger_first: take 30 % of the steps at three times epsilon and 30 % at twice epsilon first, each from the best
            point before, projected, with the k of that point: AutoAttack's schedule for l1.
    """

    threat: L1
    box_aware: bool = True
    larger_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.norm != "l1":
            raise UserError(f"L1APGD is for l1, got {self.threat.norm}: use APGD")
        if self.larger_first and not self.random_start:
            raise UserError("larger_first begins at random: set random_start: true")
        if self.larger_first and self.steps < 5:
            raise UserError(f"larger_first needs steps >= 5, got {self.steps}")

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "box_aware": self.box_aware, "larger_first": self.larger_first}

    @property
    def passes(self) -> int:
        return super().passes + self.rounds * (2 if self.larger_first else 0)

    @property
    def period(self) -> int:
        """Steps between checkpoints."""
        return max(self.steps // 25, 1)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        return tuple(range(self.period, self.steps, self.period))

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        if not self.larger_first:
            super().search(batch, draws, restart)
            return
        target = self.aim(batch, restart)
        if not len(batch):
            return
        share = -(-3 * self.steps // 10)
        larger, large = self._stage(3, share), self._stage(2, share)
        track = larger.climb(batch, larger.random_image(batch, draws), target, rehearsal=True)
        track = large.climb(batch, large.threat.project(track.best, batch.clean), target, rehearsal=True)
        start = self.threat.project(track.best, batch.clean)
        self._stage(1, self.steps - 2 * share).climb(batch, start, target)

    def random_image(self, batch: ActiveBatch, draws: Draws) -> Tensor:
        noise = draws.normals(batch.clean[0].numel(), batch.index, "start").view_as(batch.clean)
        return self.threat.project(batch.clean + noise.to(batch.clean), batch.clean)

    def _stage(self, factor: int, steps: int) -> "_Stage":
        threat = replace(self.threat, epsilon=factor * self.threat.radius)
        return _Stage(
            threat=threat, steps=steps, objective=self.objective, targets=self.targets, box_aware=self.box_aware
        )

    def _begun(self, track: Track, clean: Tensor) -> Track:
        """``mark`` holds the number of changed values at the last checkpoint."""
        size = clean.shape[1:].numel()
        return track._replace(
            length=torch.full_like(track.value, self.threat.radius), mark=torch.full_like(track.value, size)
        )

    def _checked(self, track: Track, clean: Tensor, period: int) -> Track:
        changed = _changed(track.best, clean).to(track.mark.dtype)
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
        count = self._sparsity(track, taken).long().clamp(1, flat.shape[1])
        size = flat.abs()
        least = size.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
        step = torch.where(size >= least, flat.sign(), 0)
        step = track.length[:, None] * step / step.abs().sum(1, keepdim=True).clamp_min(1)
        return self.threat.project(track.current + step.view_as(clean), clean)

    def _sparsity(self, track: Track, taken: int) -> Tensor:
        """k, ``(b,)``."""
        return track.mark / (5 if taken < self.period else 1.5)


@dataclass(frozen=True, kw_only=True)
class _Stage(L1APGD):
    """The steps at one radius of ``larger_first``: the first k is that of the start."""

    def _begun(self, track: Track, clean: Tensor) -> Track:
        return super()._begun(track, clean)._replace(mark=_changed(track.current, clean).to(track.mark.dtype))

    def _sparsity(self, track: Track, taken: int) -> Tensor:
        return track.mark / 1.5


def _changed(image: Tensor, clean: Tensor) -> Tensor:
    """How many pixel values differ, ``(b,)``."""
    return ((image - clean).abs() > ROUNDING).flatten(1).sum(1)
