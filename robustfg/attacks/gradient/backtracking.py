"""Gradient ascent with momentum that takes a step only where it helps, and makes it shorter where it does not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch, SearchOptions
from robustfg.attacks.batch.input_gradient import InputGradient
from robustfg.attacks.gradient.ascent import Ascent
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.base import Threat, step_length
from robustfg.core.errors import UserError


class Climb(NamedTuple):
    """Where the samples stand, one row each. Images and gradients are ``(b, C, H, W)``, the rest ``(b,)``."""

    current: Tensor
    value: Tensor
    """Objective at ``current``."""
    gradient: Tensor
    """At ``current``."""
    velocity: Tensor
    """Running mean of normalised gradients."""
    length: Tensor
    """Of the next step."""
    target: Tensor

    def after(self, candidate: Tensor, answer: InputGradient, factor: float) -> "Climb":
        """Moves to the candidate where the objective is no smaller there; a shorter step where it is."""
        better = answer.value >= self.value
        wide = better[:, None, None, None]
        return self._replace(
            current=torch.where(wide, candidate, self.current),
            value=torch.where(better, answer.value, self.value),
            gradient=torch.where(wide, answer.gradient, self.gradient),
            length=torch.where(better, self.length, self.length / factor),
        )


@dataclass(frozen=True, kw_only=True)
class Backtracking(Ascent):
    """PGD with momentum and backtracking, the attack of CCAT (Stutz et al. 2020) and of MCAT.

    v <- momentum * v + (1 - momentum) * g with g the steepest step of norm 1. The image moves by ``length * v`` and is
    projected; a sample whose objective would fall stays where it is and divides its length by ``factor``. So the
    objective never falls, and the last image is the best. A round of n steps is n + 1 forward and n + 1 backward
    passes: a candidate's gradient serves the next step (the release asks the model twice a step).

    Args:
        steps: gradient steps per round; 40 in training there, 200 to 1000 in evaluation.
        size: the first step's length in pixel units or as a share of epsilon; 0.005 in training there, at epsilon 0.03.
        momentum: 0.9 there.
        factor: 1.5 in training there, 1.1 or 1.25 in evaluation.
        random_start: start with no change, uniform noise from the ball, or Gaussian noise of deviation
            epsilon / (2 log d) in all d values, projected: one of the three is drawn for every sample. Otherwise at the
            clean image. With several restarts and no random start the first begins there and the others at random.
        last_iterate: return where the climb ends, with the highest objective, as they do: also beyond the point where
            the model is fooled. False: keep the worst image by the decision, and let a fooled sample go.
    """

    steps: int = 40
    size: str | float = 0.005
    momentum: float = 0.9
    factor: float = 1.5
    random_start: bool = True
    last_iterate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        step_length(self.size, 1.0)
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        if not self.factor > 1:
            raise UserError(f"factor must be > 1, got {self.factor}")

    def describe(self) -> Mapping[str, object]:
        return {
            **super().describe(),
            "step_size": str(self.size),
            "momentum": self.momentum,
            "factor": self.factor,
            "random_start": self.random_start,
            "last_iterate": self.last_iterate,
        }

    @property
    def search_options(self) -> SearchOptions:
        return SearchOptions(keep_fooled=self.last_iterate)

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        target = self.aim(batch, restart)
        if not len(batch):
            return
        start = self._start(batch, draws) if self.random_start or self.again(restart) else batch.clean
        answer = batch.gradient(start, self.towards(batch, target))
        length = torch.full_like(answer.value, step_length(self.size, self.threat.reach))
        climb = Climb(start, answer.value, answer.gradient, torch.zeros_like(start), length, target)
        for _ in range(self.steps):
            climb = Climb(*batch.drop_fooled(*climb))
            if not len(batch):
                return
            threat = self._placed(batch, draws)
            velocity = self.momentum * climb.velocity + (1 - self.momentum) * threat.steepest(climb.gradient)
            candidate = threat.project(climb.current + climb.length[:, None, None, None] * velocity, batch.clean)
            answer = batch.gradient(candidate, self.towards(batch, climb.target))
            climb = climb._replace(velocity=velocity).after(candidate, answer, self.factor)
        if self.last_iterate:
            batch.set_result(climb.current)

    def _placed(self, batch: ActiveBatch, draws: Draws) -> Threat:
        return self.threat.placed(batch.clean, batch.index, *draws.key)

    def _start(self, batch: ActiveBatch, draws: Draws) -> Tensor:
        clean, threat = batch.clean, self._placed(batch, draws)
        count = clean.shape[1:].numel()
        uniform = threat.uniform(clean, batch.index, *draws.key)
        deviation = threat.reach / (2 * math.log(max(count, 2)))
        gaussian = deviation * draws.normals(count, batch.index, "gaussian").view_as(clean).to(clean)
        kinds = torch.stack([torch.zeros_like(clean), uniform, gaussian])
        chosen = draws.integers(len(kinds), 1, batch.index, "start")[:, 0]
        noise = kinds[chosen, torch.arange(len(clean), device=clean.device)]
        return threat.project(clean + noise, clean)
