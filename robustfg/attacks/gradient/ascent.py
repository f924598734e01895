"""What the attacks share that climb along gradients: an objective, steps, and the classes they aim at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.objectives.logits import Compared, ComparingObjective, Margin, Objective
from robustfg.attacks.objectives.target_choice import MostConfused, TargetChoice
from robustfg.attacks.objectives.targeted import Aimed, TargetedObjective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.search import Search
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ascent(Search):
    """Maximises an objective: one that any mistake raises, one that needs a target class, or one that compares.

    With targets, each round drives every sample to one class: all targets in turn, ``restarts`` times.

    Args:
        steps: gradient steps per round.
        objective: what is maximised; a ``TargetedObjective`` if there are ``targets``. One that compares with the
            clean answer costs a forward pass more, unless clean logits are given.
        targets: chooses the classes to drive a sample to.
    """

    steps: int = 20
    objective: Objective | ComparingObjective | TargetedObjective = field(default_factory=Margin)
    targets: TargetChoice | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if isinstance(self.objective, TargetedObjective) and self.targets is None:
            raise UserError(f"objective {self.objective.name} needs targets, such as TopClasses")
        if not isinstance(self.objective, TargetedObjective) and self.targets is not None:
            raise UserError(f"targets need a targeted objective, such as TargetedMargin, got {self.objective.name}")

    @property
    def rounds(self) -> int:
        return self.restarts * self.aims

    @property
    def aims(self) -> int:
        """Rounds of one restart: one for every target, or one."""
        return 1 if self.targets is None else self.targets.count

    @property
    def passes(self) -> int:
        return super().passes + self.looks_before

    @property
    def looks_before(self) -> int:
        """Passes for the clean logits, which are asked for once, whatever the rounds."""
        return int(self.targets is not None or isinstance(self.objective, ComparingObjective))

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "restarts": self.restarts,
            "objective": self.objective.name,
            "seed": self.seed,
            **({} if self.targets is None else {"targets": self.targets.describe()}),
        }

    def told(self, confusion: Callable[[], Tensor]) -> Self:
        if not isinstance(self.targets, MostConfused) or self.targets.confusion is not None:
            return self
        return replace(self, targets=replace(self.targets, confusion=confusion()))

    def aim(self, batch: ActiveBatch, restart: int) -> Tensor:
        """The class every sample is driven to in this round, ``(b,)``; without targets, its label.

        If there are fewer wrong classes than targets, all samples leave in the surplus rounds, and so does a sample in
        those whose target has the logit -inf, which is no class.
        """
        if self.targets is None:
            return batch.label
        chosen = self.targets.choose(batch.logits, batch.label)
        turn = restart % self.targets.count
        if turn < chosen.shape[1]:
            target = chosen[:, turn]
            known = batch.logits.gather(1, target[:, None]).squeeze(1) > -torch.inf
            return batch.select(known, target)[0]
        batch.select(torch.zeros_like(batch.label, dtype=torch.bool))
        return batch.label

    def again(self, restart: int) -> bool:
        """Whether the round belongs to another restart than the first."""
        return restart >= self.aims

    def towards(self, batch: ActiveBatch, target: Tensor) -> Objective:
        """The objective, with ``target`` ``(b,)`` or the clean logits if it needs them."""
        if isinstance(self.objective, TargetedObjective):
            return Aimed(self.objective, target)
        if isinstance(self.objective, ComparingObjective):
            return Compared(self.objective, batch.logits)
        return self.objective

    def random_image(self, batch: ActiveBatch, draws: Draws) -> Tensor:
        """A point drawn uniformly from the threat model around every clean image, then projected to it."""
        threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        noise = threat.uniform(batch.clean, batch.index, *draws.key)
        return threat.project(batch.clean + noise, batch.clean)
