"""HopSkipJump: small perturbations from predictions alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.black_box.decision_based import DecisionBased
from robustfg.attacks.rng.directions import Directions, Gaussian
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.base import flat_norm
from robustfg.attacks.threats.lp import L2, Linf
from robustfg.core.errors import UserError

FIRST_DISTANCE = 0.1
"""Of the first step's queries from the image (Chen et al. 2020, section IV.B; there 0.1 of the pixel range)."""
FLOAT_STEPS = 4
"""By which a pixel value moves in a query, at the least, on the average."""


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(DecisionBased):
    """Walks along the decision boundary, seeing only whether predictions are wrong (Chen et al. 2020).

    A step finds the boundary between the image and the clean one, estimates its normal from the predictions at random
    places around that point, and moves along it as far as the prediction stays wrong.

    Args:
        first_queries: for the first estimate of a normal; the t-th takes sqrt(t) as many; 100 in the paper.
        most_queries: for an estimate; 10,000 in the paper.
        directions: their distribution.
        at_once: directions tried in one forward pass.
    """

    first_queries: int = 100
    most_queries: int = 10_000
    directions: Directions = field(default_factory=Gaussian)
    at_once: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, Linf | L2):
            raise UserError(f"hopskipjump knows linf and l2 threats, got {self.threat.norm}")
        self.counted("first_queries", "most_queries", "at_once")

    def describe(self) -> Mapping[str, object]:
        return {
            **super().describe(),
            "first_queries": self.first_queries,
            "most_queries": self.most_queries,
            "directions": self.directions.name,
        }

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Starts at wrong noise and steps as long as every sample's queries last."""
        point, spent = self.begun(batch, draws)
        for step in range(1, self.queries):
            count = min(int(self.first_queries * math.sqrt(step)), self.most_queries)
            point, spent = batch.drop_fooled(point, spent)
            if not len(batch):
                return
            lacking = spent + count + 1 + self.halvings(point) > self.queries
            point, spent = self.retire(batch, lacking, point, spent)
            if not len(batch):
                return
            normal = self._normal(batch, draws, point, step, count)
            point, spent = self._move(batch, point, normal, spent + count, step)
            point, spent = self.to_boundary(batch, point, spent)

    def _normal(self, batch: ActiveBatch, draws: Draws, point: Tensor, step: int, count: int) -> Tensor:
        """The direction in which predictions turn wrong (eq. 14 and 16: signs less their mean, times directions).

        The queries lie as far away as the paper says, the perturbation's size in the threat's norm by the number of
        values, but far enough for every value to move by some float steps; in l-inf it would often not.
        """
        if step == 1:
            distance = torch.full_like(point[:, :1, :1, :1], FIRST_DISTANCE)
        else:
            values = point[0].numel()
            size = self.threat.size(point - batch.clean)[:, None, None, None] / values
            distance = size.clamp_min(FLOAT_STEPS * torch.finfo(point.dtype).eps * math.sqrt(values)).to(point.dtype)
        signed, total = torch.zeros_like(point), torch.zeros_like(point)
        balance = torch.zeros_like(distance)
        rows = torch.arange(len(batch), device=point.device)
        for first in range(0, count, self.at_once):
            tries = range(first, min(first + self.at_once, count))
            shown = []
            for number in tries:
                direction = self.directions.drawn(draws, point, batch.index, "direction", step, number)
                direction = direction / flat_norm(direction).to(direction.dtype)
                shown.append((point + distance * direction).clamp(0, 1))
            wrong = self.wrong(batch, torch.cat(shown), rows.repeat(len(tries)))
            for image, sign in zip(shown, wrong.to(point.dtype).mul(2).sub(1).chunk(len(tries)), strict=True):
                sign = sign[:, None, None, None]
                signed, total, balance = signed + sign * (image - point), total + (image - point), balance + sign
        mean = balance / count
        return torch.where(mean.abs() == 1, signed, signed - mean * total)

    def _move(
        self, batch: ActiveBatch, point: Tensor, normal: Tensor, spent: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Along the normal, halving the step until the prediction is wrong or queries are short."""
        direction = self.threat.steepest(normal)
        length = (self.threat.size(point - batch.clean) / math.sqrt(step)).to(point.dtype)
        point, spent = point.clone(), spent.clone()
        enough = self.queries - self.halvings(point)
        rows = torch.arange(len(batch), device=point.device)
        for halving in range(torch.finfo(point.dtype).bits):
            rows = rows[spent[rows] < enough]
            if not len(rows):
                break
            stride = length[rows, None, None, None] * 0.5**halving
            image = (point[rows] + stride * direction[rows]).clamp(0, 1)
            wrong = self.wrong(batch, image, rows)
            point[rows[wrong]] = image[wrong]
            spent[rows] += 1
            rows = rows[~wrong]
        return point, spent
