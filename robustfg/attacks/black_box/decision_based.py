"""Attacks that see only whether predictions are wrong, and how they begin."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.base import MinimumNormAttack
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import Linf
from robustfg.core.errors import UserError

GRIDS = (0, 8, 4, 2, 1)
"""Cells along a side of the starting noise, in turn; 0: every pixel its own, as in the papers."""


@dataclass(frozen=True, kw_only=True)
class DecisionBased(MinimumNormAttack):
    """Starts at random images that are wrong, and goes to the decision boundary on the way to the clean ones.

    Args:
        queries: forward passes per restart at the most.
        tries: random images tried as a start; their noise has other grain each time, as many classifiers give all
            fine noise the same class.
    """

    queries: int = 5000
    tries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counted("queries", "tries")

    def counted(self, *options: str) -> None:
        """Raises ``UserError`` for options below 1."""
        for option in options:
            if getattr(self, option) < 1:
                raise UserError(f"{option} must be >= 1, got {getattr(self, option)}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.queries,
            "tries": self.tries,
            "stop_inside": self.stop_inside,
            "restarts": self.restarts,
            "objective": "prediction",
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        return self.restarts * self.queries

    def wrong(self, batch: ActiveBatch, image: Tensor, of: Tensor | None = None) -> Tensor:
        """One query: whether the prediction is wrong, all that these attacks may know."""
        return batch.evaluate(image, of)[1] < 0

    def begun(self, batch: ActiveBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Wrong images at the boundary and the queries spent; samples without one retire, wrong ones too."""
        self.retire(batch, self.wrong(batch, batch.clean))
        point, spent = self._start(batch, draws)
        point, spent = self.retire(batch, spent + self.halvings(point) > self.queries, point, spent)
        return self.to_boundary(batch, point, spent) if len(batch) else (point, spent)

    def _start(self, batch: ActiveBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Wrong random images and the queries spent; samples without one retire."""
        point, spent = batch.clean.clone(), torch.ones_like(batch.label)
        missing = torch.ones_like(batch.label, dtype=torch.bool)
        for attempt in range(min(self.tries, self.queries - 1)):
            rows = missing.nonzero().flatten()
            if not len(rows):
                break
            noise = grainy(batch.clean[rows], batch.index[rows], draws, attempt)
            wrong = self.wrong(batch, noise, rows)
            point[rows[wrong]], missing[rows] = noise[wrong], ~wrong
            spent[rows] += 1
        return self.retire(batch, missing, point, spent)

    def halvings(self, image: Tensor) -> int:
        """Queries of a search for the boundary: to d^-1.5 of the way in l2 and d^-2 in l-inf, or what floats tell."""
        exponent = 2 if isinstance(self.threat, Linf) else 1.5
        resolution = 1 / (8 * torch.finfo(image.dtype).eps)
        return math.ceil(math.log2(min(image.shape[1:].numel() ** exponent, resolution)))

    def to_boundary(self, batch: ActiveBatch, point: Tensor, spent: Tensor) -> tuple[Tensor, Tensor]:
        """The wrong image nearest to the clean one, on the line there or, in l-inf, among the clipped ones."""
        size = self.threat.size(point - batch.clean).to(point.dtype)
        low, high = torch.zeros_like(size), torch.ones_like(size)
        halvings = self.halvings(point)
        nearest = point
        for _ in range(halvings):
            middle = (low + high) / 2
            share = middle[:, None, None, None]
            if isinstance(self.threat, Linf):
                reach = share * size[:, None, None, None]
                image = torch.clamp(point, batch.clean - reach, batch.clean + reach)
            else:
                image = batch.clean + share * (point - batch.clean)
            image = image.clamp(0, 1)
            wrong = self.wrong(batch, image)
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
            nearest = torch.where(wrong[:, None, None, None], image, nearest)
        return nearest, spent + halvings


def grainy(clean: Tensor, index: Tensor, draws: Draws, attempt: int) -> Tensor:
    """Uniform random images like ``clean``, of the attempt's grain."""
    batch, channels, height, width = clean.shape
    cells = GRIDS[attempt % len(GRIDS)]
    down, across = (min(cells, side) if cells else side for side in (height, width))
    noise = draws.uniforms(channels * down * across, index, "start", attempt).view(batch, channels, down, across)
    return F.interpolate(noise.to(clean), (height, width))
