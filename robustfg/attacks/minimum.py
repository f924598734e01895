"""Attacks that look for the smallest perturbation with a wrong prediction, wherever it lies."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVarTuple

import torch
from torch import Tensor

from robustfg.attacks.draws import Draws
from robustfg.attacks.search import Search
from robustfg.attacks.victim import Victim

States = TypeVarTuple("States")


@dataclass(frozen=True, kw_only=True)
class MinimumNormAttack(Search):
    """Keeps the smallest perturbation with a wrong prediction.

    A sample whose smallest one lies outside epsilon ends at its projection to the ball, at which nobody has looked.
    With an epsilon that no image exceeds (l-inf 1, l2 1000) the attack measures minimal perturbations. Further
    restarts go only to samples without a wrong image within epsilon.

    Args:
        stop_inside: a sample leaves as soon as a wrong image lies within epsilon, which is all that robust accuracy
            asks for; false: the smallest is searched to the end.
    """

    stop_inside: bool = True

    @abstractmethod
    def shrink(self, victim: Victim, draws: Draws, restart: int) -> None:
        """One restart: asks ``victim`` about images in the box, inside epsilon or not; arguments as for ``search``."""

    def victim_options(self) -> Mapping[str, bool]:
        return {"minimum": True, "stay": not self.stop_inside}

    def search(self, victim: Victim, draws: Draws, restart: int) -> None:
        """Shrinks, then takes those to the ball whose smallest wrong image lies outside."""
        self.shrink(victim, draws, restart)
        if len(victim):
            self.retire(victim, torch.ones_like(victim.label, dtype=torch.bool))

    def retire(self, victim: Victim, done: Tensor, *state: *States) -> tuple[*States]:
        """Lets the samples go that ``done`` ``(b,)`` names, with an image inside epsilon; returns the others' state."""
        image, _ = victim.best()  # the clean image of a sample that was never wrong
        outside = self.threat.size(image.double() - victim.clean.double()) > self.threat.radius
        victim.settle(self.threat.project(image, victim.clean), done & outside)
        return victim.keep(~done, *state)
