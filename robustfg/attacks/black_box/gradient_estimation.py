"""Gradient ascent without gradients: NES and SPSA estimate them from pairs of queries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.gradient.step_rules import Momentum, StepRule
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.rng.directions import Directions, Gaussian
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.search import Search
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EstimatedGradient(Search):
    """Projected ascent along gradients estimated by differences over random directions.

    With Gaussian directions this is NES (Ilyas et al. 2018), with Rademacher ones SPSA (Uesato et al. 2018). Queries
    stay inside the threat model: those of a pair that would leave it are projected, so that a coordinate at the
    border counts half, which turns no sign. A wrong prediction at any query is a success.

    Args:
        step: the step rule; NES's released code has momentum 0.9.
        steps: gradient steps per restart.
        samples: queries per step, in antithetic pairs; 50 in NES.
        deviation: how far a query lies from the image in every coordinate; 0.001 in NES, 0.01 in SPSA.
        directions: their distribution.
        objective: what is maximised.
        random_start: start at a point drawn uniformly from the ball; otherwise at the clean image. With several
            restarts and no random start the first begins at the clean image and the others at random.
    """

    step: StepRule = field(default_factory=lambda: Momentum(size="eps/10", decay=0.9))
    steps: int = 40
    samples: int = 50
    deviation: float = 0.001
    directions: Directions = field(default_factory=Gaussian)
    objective: Objective = field(default_factory=Margin)
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if self.samples < 2 or self.samples % 2:
            raise UserError(f"samples must be even and >= 2, got {self.samples}")
        if self.deviation <= 0:
            raise UserError(f"deviation must be > 0, got {self.deviation}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "samples": self.samples,
            "deviation": self.deviation,
            "directions": self.directions.name,
            "step_rule": type(self.step).__name__.lower(),
            **{f"step_{option}": str(value) for option, value in vars(self.step).items()},
            "random_start": self.random_start,
            "restarts": self.restarts,
            "objective": self.objective.name,
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        return self.restarts * (self.steps * self.samples + 1)

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Climbs from the start; a sample leaves after the pair of queries that fools it."""
        current, memory = batch.clean, None
        if self.random_start or restart:
            noise = self.threat.uniform(batch.clean, batch.index, *draws.key)
            current = self.threat.project(batch.clean + noise, batch.clean)
        for taken in range(self.steps):
            shown = self.step.ahead(current, memory, self.threat)
            slope = torch.zeros_like(shown)
            for pair in range(self.samples // 2):
                slope = slope + self._along(batch, draws, shown, taken, pair)
                current, memory, shown, slope = batch.drop_fooled(current, memory, shown, slope)
                if not len(batch):
                    return
            moved, memory = self.step(current, slope / (self.samples // 2), memory, self.threat)
            current = self.threat.project(moved, batch.clean)
        batch.evaluate(current)

    def _along(self, batch: ActiveBatch, draws: Draws, image: Tensor, taken: int, pair: int) -> Tensor:
        """A pair's estimate of the gradient: the slope along a direction, times the direction."""
        direction = self.directions.drawn(draws, image, batch.index, "direction", taken, pair)
        pairs = torch.cat([image + self.deviation * direction, image - self.deviation * direction])
        rows = torch.arange(len(batch), device=image.device).repeat(2)
        output, _ = batch.evaluate(self.threat.project(pairs, batch.clean[rows]), of=rows)
        above, below = self.objective(output, batch.label[rows]).chunk(2)
        slope = ((above - below) / (2 * self.deviation)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return slope.to(image.dtype)[:, None, None, None] * direction
