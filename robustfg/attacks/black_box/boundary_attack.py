"""The boundary attack: a random walk along the decision boundary, from predictions alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.black_box.decision_based import DecisionBased
from robustfg.attacks.rng.directions import Gaussian
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.base import flat_norm
from robustfg.attacks.threats.lp import L2
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BoundaryAttack(DecisionBased):
    """Steps along the sphere around the clean image and towards it where that stays wrong (Brendel et al. 2018).

    Both lengths, in units of the distance to the clean image, are every sample's own. After ``window`` tries each grows
    or shrinks with the share that was wrong: steps along the sphere should be so half the time, as a flat boundary
    makes them, and steps towards the image often enough. Those along the sphere are only asked about every tenth step.

    Args:
        along: first length of steps along the sphere; 0.01 in the released code.
        towards: first length of steps towards the image.
        factor: by which lengths change; 1.5 in the released code.
        window: tries between two changes of a length. The released code's 100 along the sphere and 30 towards the image
            would take 1,100 queries before the first change.
        converged: a sample ends when its steps towards the image are shorter; 1e-7 in the released code.
    """

    along: float = 0.01
    towards: float = 0.01
    factor: float = 1.5
    window: int = 10
    converged: float = 1e-7

    LEAST: ClassVar[tuple[float, float]] = (0.2, 0.1)
    """A length shrinks where a smaller share of its tries was wrong: along the sphere, and towards the image."""
    MOST: ClassVar[tuple[float, float]] = (0.5, 0.25)
    """It grows where a larger share was."""
    EVERY: ClassVar[int] = 10
    """Steps between two queries on the sphere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, L2):
            raise UserError(f"boundary knows l2 threats, got {self.threat.norm}")
        self.counted("window")
        for option in ("along", "towards", "converged"):
            if not 0 < getattr(self, option) < 1:
                raise UserError(f"{option} must be in (0, 1), got {getattr(self, option)}")
        if self.factor <= 1:
            raise UserError(f"factor must be > 1, got {self.factor}")

    def describe(self) -> Mapping[str, object]:
        return {
            **super().describe(),
            **{option: getattr(self, option) for option in ("along", "towards", "factor", "window", "converged")},
        }

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Walks from the boundary as long as queries last and steps are not too short."""
        point, spent = self.begun(batch, draws)
        length = torch.tensor([self.along, self.towards], device=point.device).double().repeat(len(batch), 1)
        tried, won = torch.zeros_like(length), torch.zeros_like(length)  # in the present window
        for step in range(1, self.queries):
            point, spent, length, tried, won = batch.drop_fooled(point, spent, length, tried, won)
            looks = step % self.EVERY == 0
            done = (spent + 1 + looks > self.queries) | (length[:, 1] < self.converged)
            if bool(done.any()):
                point, spent, length, tried, won = self.retire(batch, done, point, spent, length, tried, won)
            if not len(batch):
                return
            around, nearer = self._proposals(batch, draws, point, length, step)
            if looks:
                tried[:, 0] += 1
                won[:, 0] += self.wrong(batch, around)
            found = self.wrong(batch, nearer)
            tried[:, 1] += 1
            won[:, 1] += found
            point, spent = torch.where(found[:, None, None, None], nearer, point), spent + 1 + looks
            length, tried, won = self._adapted(length, tried, won)

    def _proposals(
        self, batch: ActiveBatch, draws: Draws, point: Tensor, length: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """An image beside ``point`` on the sphere around the clean one, and that image brought nearer."""
        along, towards = (length[:, kind, None, None, None] for kind in range(2))
        away = point - batch.clean
        size = flat_norm(away)
        direction = away / size.to(away.dtype)
        noise = Gaussian().drawn(draws, point, batch.index, "direction", step)
        noise = noise - (noise * direction).sum((1, 2, 3), keepdim=True) * direction
        aside = noise * (along * size / flat_norm(noise)).to(noise.dtype)
        around = (batch.clean + (away + aside) / (1 + along.square()).sqrt().to(away.dtype)).clamp(0, 1)
        change = around - batch.clean
        share = ((1 - towards) * size / flat_norm(change)).clamp_max(1)  # clipped, it may be near enough already
        return around, (batch.clean + share.to(change.dtype) * change).clamp(0, 1)

    def _adapted(self, length: Tensor, tried: Tensor, won: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lengths after what was tried, and what is left of the windows: those that are full begin again."""
        full, share = tried >= self.window, won / tried.clamp_min(1)
        grows, shrinks = full & (share > share.new_tensor(self.MOST)), full & (share < share.new_tensor(self.LEAST))
        length = torch.where(grows, length * self.factor, torch.where(shrinks, length / self.factor, length))
        return length, tried.masked_fill(full, 0), won.masked_fill(full, 0)
