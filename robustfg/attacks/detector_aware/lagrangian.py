"""Wrong and accepted as one weighed sum, and the search for every sample's own weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.gradient.ascent import Ascent
from robustfg.attacks.gradient.step_rules import cosine
from robustfg.attacks.objectives.acceptance import Reading, Threshold
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.settings import settings_of
from robustfg.attacks.threats.base import step_length
from robustfg.core.errors import UserError
from robustfg.core.types import Output

LEAST, MOST = 0.01, 100.0
"""Weights that are tried."""
FACTOR = 10.0
"""From one weight to the next while only one side is known."""


@dataclass(frozen=True, kw_only=True)
class Lagrangian(Threshold):
    """min(M, confidence) - weight * [score - tau + margin c]_+ / c: both goals at once, weighed (C&W style).

    Args:
        score: as of ``WrongAndAccepted``.
        tau: threshold on the score.
        weight: lambda; try several between 0.01 and 100, none is best everywhere.
        scale: c; None: tau, which must then be positive.
        classifier: positive where the class is wrong, M.
        confidence: M beyond which nothing more is gained; about a fifth of the clean margin.
        margin: how far below the threshold to aim, as a share of c.
    """

    score: Reading
    weight: float
    classifier: Objective = field(default_factory=Margin)
    confidence: float = torch.inf
    margin: float = 0.05

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight must be > 0, got {self.weight}")
        super().__post_init__()

    @property
    def name(self) -> str:
        return f"{self.classifier.name} - {self.weight:g} detector"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        gain, excess = self.parts(output, label)
        return gain - self.weight * excess

    def parts(self, output: Output | Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """min(M, confidence) and what is weighed, ``(B,)`` each."""
        excess = ((self.score(output) - self.tau) / self.unit + self.margin).clamp_min(0)
        return self.classifier(output, label).clamp_max(self.confidence), excess


@dataclass(frozen=True)
class Weighed:
    """A Lagrangian with a weight for every sample.

    Args:
        objective: its own weight plays no part.
        weight: ``(B,)``.
    """

    objective: Lagrangian
    weight: Tensor
    name = "weighed"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        gain, excess = self.objective.parts(output, label)
        return gain - self.weight.to(gain.dtype) * excess


class Weights(NamedTuple):
    """Where the search for the weights stands, ``(b,)`` float64 each."""

    weight: Tensor
    lower: Tensor
    """The largest one with which the classifier ended fooled; 0: none has."""
    upper: Tensor
    """The smallest one with which it did not; infinite: none has not."""

    def after(self, fooled: Tensor) -> "Weights":
        """The next weights: more on the detector where the classifier ended ``fooled`` ``(b,)``, less where not."""
        lower = torch.where(fooled, torch.maximum(self.lower, self.weight), self.lower)
        upper = torch.where(fooled, self.upper, torch.minimum(self.upper, self.weight))
        onwards = torch.where(fooled, self.weight * FACTOR, self.weight / FACTOR).clamp(LEAST, MOST)
        between = (lower * upper).sqrt()
        return Weights(torch.where((lower > 0) & upper.isfinite(), between, onwards), lower, upper)


@dataclass(frozen=True, kw_only=True)
class LagrangianSearch(Ascent):
    """Projected ascent on a Lagrangian with several weights, every sample with its own (Carlini & Wagner 2017).

    A restart tries ``searches`` weights from ``objective.weight`` on, each by a climb of ``steps``. A climb that ends
    with the classifier fooled raises the weight on the detector, another lowers it: tenfold within [0.01, 100] until
    both have been seen, then to the geometric mean of the two sides. So the weights close in on the one at which the
    classifier just gives in. Steps shrink along a cosine. The first climb begins at the clean image, the others at
    points drawn from the ball.

    Args:
        searches: weights tried; 9 in the paper.
        steps: gradient steps with each.
        size: length of a climb's first step, in pixel units or as a share of epsilon.
        objective: what is weighed, and the first weight.
    """

    searches: int = 9
    steps: int = 100
    size: str | float = "eps/4"
    objective: Lagrangian

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.searches < 1:
            raise UserError(f"searches must be >= 1, got {self.searches}")
        if not step_length(self.size, 1.0) > 0:
            raise UserError(f"size must be > 0, got {self.size}")

    @property
    def passes(self) -> int:
        return self.restarts * self.searches * (self.steps + 1)

    def describe(self) -> Mapping[str, object]:
        told = {"searches": self.searches, "step_size": str(self.size), "lagrangian": settings_of(self.objective)}
        return {**super().describe(), "objective": f"{self.objective.classifier.name} - weighed detector", **told}

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """A climb is ``steps`` forward and backward passes and a last look; samples that are fooled leave."""
        first = torch.full_like(batch.label, self.objective.weight, dtype=torch.float64)
        weights = Weights(first, torch.zeros_like(first), torch.full_like(first, torch.inf))
        for turn in range(restart * self.searches, (restart + 1) * self.searches):
            own = replace(draws, restart=turn)
            current, weights = self._climbed(batch, own, batch.clean if not turn else None, weights)
            if not len(batch):
                return
            output, _ = batch.evaluate(current)
            weights = weights.after(self.objective.classifier(output, batch.label) > 0)
            weights = Weights(*batch.drop_fooled(*weights))
            if not len(batch):
                return

    def _climbed(
        self, batch: ActiveBatch, draws: Draws, start: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Weights]:
        """Where a climb from ``start``, or from a random point, ends, and the weights of the samples that are left."""
        current = self.random_image(batch, draws) if start is None else start
        threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        for taken in range(self.steps):
            answer = batch.gradient(current, Weighed(self.objective, weights.weight))
            length = step_length(self.size, threat.reach) * cosine(taken, self.steps)
            current = threat.project(current + length * threat.steepest(answer.gradient), batch.clean)
            standing = len(batch)
            current, *columns = batch.drop_fooled(current, *weights)
            weights = Weights(*columns)
            if not len(batch):
                break
            if len(batch) < standing:
                threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        return current, weights
