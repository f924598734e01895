"""HopSkipJump: small perturbations from predictions alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.attacks.balls import L2, Linf
from robustfg.attacks.directions import Directions, Gaussian
from robustfg.attacks.draws import Draws
from robustfg.attacks.minimum import MinimumNormAttack
from robustfg.attacks.threat import flat_norm
from robustfg.attacks.victim import Victim
from robustfg.errors import UserError

FIRST_DISTANCE = 0.1
"""Of the first step's queries from the image (Chen et al. 2020, section IV.B; there 0.1 of the pixel range)."""
GRIDS = (0, 8, 4, 2, 1)
"""Cells along a side of the starting noise, in turn; 0: every pixel its own, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimumNormAttack):
    """Walks along the decision boundary, seeing only whether predictions are wrong (Chen et al. 2020).

    A step finds the boundary between the image and the clean one, estimates its normal from the predictions at random
    places around that point, and moves along it as far as the prediction stays wrong.

    Args:
        queries: forward passes per restart at the most.
        first_queries: for the first estimate of a normal; the t-th takes sqrt(t) as many; 100 in the paper.
        most_queries: for an estimate; 10,000 in the paper.
        tries: random images tried as a start; their noise has other grain each time, as many classifiers give all
            fine noise the same class.
        directions: their distribution.
        at_once: directions tried in one forward pass.
    """

    queries: int = 5000
    first_queries: int = 100
    most_queries: int = 10_000
    tries: int = 100
    directions: Directions = field(default_factory=Gaussian)
    at_once: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, Linf | L2):
            raise UserError(f"hopskipjump knows linf and l2 threats, got {self.threat.norm}")
        for option in ("queries", "first_queries", "most_queries", "tries", "at_once"):
            if getattr(self, option) < 1:
                raise UserError(f"{option} must be >= 1, got {getattr(self, option)}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.queries,
            "first_queries": self.first_queries,
            "most_queries": self.most_queries,
            "tries": self.tries,
            "directions": self.directions.name,
            "stop_inside": self.stop_inside,
            "restarts": self.restarts,
            "objective": "prediction",
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        return self.restarts * self.queries

    def shrink(self, victim: Victim, draws: Draws, restart: int) -> None:
        """Starts at wrong noise and steps as long as every sample's queries last."""
        wrong = self._wrong(victim, victim.clean)
        self.retire(victim, wrong)
        if not len(victim):
            return
        point, spent = self._start(victim, draws)
        lacking = spent + self._halvings(point) > self.queries
        point, spent = self.retire(victim, lacking, point, spent)
        if not len(victim):
            return
        point, spent = self._to_boundary(victim, point, spent)
        for step in range(1, self.queries):
            count = min(int(self.first_queries * math.sqrt(step)), self.most_queries)
            point, spent = victim.leave(point, spent)
            if not len(victim):
                return
            lacking = spent + count + 1 + self._halvings(point) > self.queries
            point, spent = self.retire(victim, lacking, point, spent)
            if not len(victim):
                return
            normal = self._normal(victim, draws, point, step, count)
            point, spent = self._move(victim, point, normal, spent + count, step)
            point, spent = self._to_boundary(victim, point, spent)

    def _wrong(self, victim: Victim, image: Tensor, of: Tensor | None = None) -> Tensor:
        """One query: whether the prediction is wrong, all that this attack may know."""
        return victim.look(image, of)[1] < 0

    def _start(self, victim: Victim, draws: Draws) -> tuple[Tensor, Tensor]:
        """Wrong random images and the queries spent; samples without one retire."""
        point, spent = victim.clean.clone(), torch.ones_like(victim.label)
        missing = torch.ones_like(victim.label, dtype=torch.bool)
        for attempt in range(min(self.tries, self.queries - 1)):
            rows = missing.nonzero().flatten()
            if not len(rows):
                break
            noise = grainy(victim.clean[rows], victim.index[rows], draws, attempt)
            wrong = self._wrong(victim, noise, rows)
            point[rows[wrong]], missing[rows] = noise[wrong], ~wrong
            spent[rows] += 1
        return self.retire(victim, missing, point, spent)

    def _halvings(self, image: Tensor) -> int:
        """Queries of a search for the boundary: to d^-1.5 of the way in l2 and d^-2 in l-inf, or what floats tell."""
        exponent = 2 if isinstance(self.threat, Linf) else 1.5
        resolution = 1 / (8 * torch.finfo(image.dtype).eps)
        return math.ceil(math.log2(min(image.shape[1:].numel() ** exponent, resolution)))

    def _to_boundary(self, victim: Victim, point: Tensor, spent: Tensor) -> tuple[Tensor, Tensor]:
        """The wrong image nearest to the clean one, on the line there or, in l-inf, among the clipped ones."""
        size = self.threat.size(point - victim.clean).to(point.dtype)
        low, high = torch.zeros_like(size), torch.ones_like(size)
        halvings = self._halvings(point)
        nearest = point
        for _ in range(halvings):
            middle = (low + high) / 2
            share = middle[:, None, None, None]
            if isinstance(self.threat, Linf):
                reach = share * size[:, None, None, None]
                image = torch.clamp(point, victim.clean - reach, victim.clean + reach)
            else:
                image = victim.clean + share * (point - victim.clean)
            image = image.clamp(0, 1)
            wrong = self._wrong(victim, image)
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
            nearest = torch.where(wrong[:, None, None, None], image, nearest)
        return nearest, spent + halvings

    def _normal(self, victim: Victim, draws: Draws, point: Tensor, step: int, count: int) -> Tensor:
        """The direction in which predictions turn wrong (eq. 14 and 16: signs less their mean, times directions)."""
        if step == 1:
            distance = torch.full_like(point[:, :1, :1, :1], FIRST_DISTANCE)
        else:
            distance = (flat_norm(point - victim.clean) / point[0].numel()).to(point.dtype)
        signed, total = torch.zeros_like(point), torch.zeros_like(point)
        balance = torch.zeros_like(distance)
        rows = torch.arange(len(victim), device=point.device)
        for first in range(0, count, self.at_once):
            tries = range(first, min(first + self.at_once, count))
            shown = []
            for number in tries:
                direction = self.directions.drawn(draws, point, victim.index, "direction", step, number)
                direction = direction / flat_norm(direction).to(direction.dtype)
                shown.append((point + distance * direction).clamp(0, 1))
            wrong = self._wrong(victim, torch.cat(shown), rows.repeat(len(tries)))
            for image, sign in zip(shown, wrong.to(point.dtype).mul(2).sub(1).chunk(len(tries)), strict=True):
                sign = sign[:, None, None, None]
                signed, total, balance = signed + sign * (image - point), total + (image - point), balance + sign
        mean = balance / count
        return torch.where(mean.abs() == 1, signed, signed - mean * total)

    def _move(self, victim: Victim, point: Tensor, normal: Tensor, spent: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Along the normal, halving the step until the prediction is wrong or queries are short."""
        direction = self.threat.steepest(normal)
        length = (self.threat.size(point - victim.clean) / math.sqrt(step)).to(point.dtype)
        point, spent = point.clone(), spent.clone()
        enough = self.queries - self._halvings(point)
        rows = torch.arange(len(victim), device=point.device)
        for halving in range(torch.finfo(point.dtype).bits):
            rows = rows[spent[rows] < enough]
            if not len(rows):
                break
            stride = length[rows, None, None, None] * 0.5**halving
            image = (point[rows] + stride * direction[rows]).clamp(0, 1)
            wrong = self._wrong(victim, image, rows)
            point[rows[wrong]] = image[wrong]
            spent[rows] += 1
            rows = rows[~wrong]
        return point, spent


def grainy(clean: Tensor, index: Tensor, draws: Draws, attempt: int) -> Tensor:
    """Uniform random images like ``clean``, of the attempt's grain."""
    batch, channels, height, width = clean.shape
    cells = GRIDS[attempt % len(GRIDS)]
    down, across = (min(cells, side) if cells else side for side in (height, width))
    noise = draws.uniforms(channels * down * across, index, "start", attempt).view(batch, channels, down, across)
    return F.interpolate(noise.to(clean), (height, width))
