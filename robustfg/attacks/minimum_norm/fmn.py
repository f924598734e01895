"""FMN: the fast minimum-norm attack."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.base import MinimumNormAttack
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.base import flat_norm
from robustfg.attacks.threats.lp import Ball
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNormAttack):
    """Gradient steps inside a ball whose radius follows the boundary (Pintor et al. 2021, algorithm 1).

    The radius shrinks where the prediction is wrong and grows where it is right; until the first wrong one it is the
    boundary's distance on a linear model. In l0, where that says nothing, it starts at one pixel and changes by at
    least one. That distance is lengthened by ``change``, unlike in the paper: where the model is linear to the
    boundary, images would stay just before it.

    Args:
        threat: l-inf, l2, l1 or l0; an epsilon that no image exceeds where minimal norms are asked for.
        steps: passes of a sample; 1000 in the paper's tables, 100 where it compares speed.
        step_size: l2 length of the first step, in pixels; 1 in the paper.
        last_step_size: of the last, reached along a cosine; 0 in the paper.
        change: share by which the radius changes at first; 0.05 in the paper.
        last_change: and in the end, reached along a cosine; 0.001 in the released code.
        objective: what is maximised; the linear estimate takes it as 0 on the boundary.
    """

    threat: Ball
    steps: int = 100
    step_size: float = 1.0
    last_step_size: float = 0.0
    change: float = 0.05
    last_change: float = 0.001
    objective: Objective = field(default_factory=Margin)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, Ball):
            raise UserError(f"FMN knows the norms linf, l2, l1 and l0, got {self.threat.norm}")
        if self.steps < 2:
            raise UserError(f"steps must be >= 2, got {self.steps}")
        if not 0 <= self.last_step_size <= self.step_size:
            raise UserError(f"last_step_size must be in [0, step_size], got {self.last_step_size}")
        if not 0 <= self.last_change <= self.change < 1:
            raise UserError(f"need 0 <= last_change <= change < 1, got {self.last_change} and {self.change}")
        if self.restarts != 1:
            raise UserError(f"FMN has nothing random: restarts must be 1, got {self.restarts}")

    @property
    def passes(self) -> int:
        return self.steps

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "step_size": self.step_size,
            "last_step_size": self.last_step_size,
            "change": self.change,
            "last_change": self.last_change,
            "stop_inside": self.stop_inside,
            "restarts": self.restarts,
            "objective": self.objective.name,
            "seed": self.seed,
        }

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        image = batch.clean
        radius = torch.full_like(batch.label, int(self.threat.whole), dtype=torch.float64)
        smallest = torch.full_like(radius, torch.inf)
        for taken in range(self.steps - 1):
            answer = batch.gradient(image, self.objective)
            wrong = batch.margin < 0
            size = self.threat.size(image.double() - batch.clean.double())
            smallest = torch.where(wrong, torch.minimum(size, smallest), smallest)
            linear = size - answer.value.double().nan_to_num() / self._dual(answer.gradient)
            share = cosine(self.change, self.last_change, taken, self.steps)
            radius = self._radius(radius, smallest, wrong, linear, share)
            length = cosine(self.step_size, self.last_step_size, taken, self.steps)
            norm = flat_norm(answer.gradient).to(image.dtype).clamp_min(torch.finfo(image.dtype).tiny)
            moved = image + length * answer.gradient / norm
            image = self.threat.within(moved, batch.clean, radius.view(-1, 1, 1, 1)).clamp(0, 1)
            image, radius, smallest = batch.drop_fooled(image, radius, smallest)
            if not len(batch):
                return
        batch.evaluate(image)

    def _dual(self, gradient: Tensor) -> Tensor:
        return self.threat.dual(gradient).clamp_min(torch.finfo(torch.float64).tiny)

    def _radius(self, radius: Tensor, smallest: Tensor, wrong: Tensor, linear: Tensor, share: float) -> Tensor:
        """The next radius, ``(b,)``: equations 4 and 5, and the paper's rule for l0."""
        if self.threat.whole:
            shrunk = torch.minimum(radius - 1, (radius * (1 - share)).floor()).clamp_min(0)
            grown = torch.maximum(radius + 1, (radius * (1 + share)).floor())
        else:
            shrunk = radius * (1 - share)
            grown = (1 + share) * torch.where(smallest.isfinite(), radius, linear)
        return torch.where(wrong, torch.minimum(shrunk, smallest), grown)


def cosine(first: float, last: float, taken: int, steps: int) -> float:
    """A value that goes from ``first`` to ``last`` along half a cosine (Loshchilov & Hutter 2017)."""
    return last + (first - last) * (1 + math.cos(math.pi * taken / steps)) / 2
