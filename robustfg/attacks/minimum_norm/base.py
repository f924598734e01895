"""Attacks that look for the smallest perturbation with a wrong prediction, wherever it lies."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVarTuple

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch, SearchOptions
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.search import Search

States = TypeVarTuple("States")


@dataclass(frozen=True, kw_only=True)
class MinimumNormAttack(Search):
    """Keeps the smallest perturbation with a wrong prediction.

    A sample whose smallest one lies outside epsilon ends at its projection to the ball, unseen by the model.
    With an epsilon that no image exceeds (l-inf 1, l2 1000) the attack measures minimal perturbations. Further
    restarts go only to samples without a wrong image within epsilon.

    Args:
        stop_inside: drop a sample as soon as a wrong image lies within epsilon, which is all that robust accuracy
            asks for; false: the smallest is searched to the end.
    """

    stop_inside: bool = True

    @abstractmethod
    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """One restart: asks about images in the box, inside epsilon or not; arguments as for ``search``."""

    def searching(self) -> Engine:
        """The model itself: so near the boundary most answers of a copy would have to be confirmed."""
        return self.engine.exact()

    @property
    def search_options(self) -> SearchOptions:
        return SearchOptions(minimise_norm=True, keep_fooled=not self.stop_inside)

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Minimises the norm, then projects samples whose smallest wrong image lies outside epsilon."""
        self.shrink(batch, draws, restart)
        if len(batch):
            self.retire(batch, torch.ones_like(batch.label, dtype=torch.bool))

    def retire(self, batch: ActiveBatch, done: Tensor, *state: *States) -> tuple[*States]:
        """Ends the samples that ``done`` ``(b,)`` names, with an image inside epsilon; returns the others' state."""
        image, _ = batch.best()  # the clean image of a sample that was never wrong
        outside = self.threat.size(image.double() - batch.clean.double()) > self.threat.radius
        batch.set_result(self.threat.project(image, batch.clean), done & outside)
        return batch.select(~done, *state)
