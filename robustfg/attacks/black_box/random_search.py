"""Random search: change the best image a little at random, keep the change if the objective grew."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.search import Search
from robustfg.core.errors import UserError

BLOCK = 32
"""Queries whose random numbers are drawn at once: drawing a few for every query by itself costs ten times as much."""
SCHEDULE_LENGTH = 10_000
"""Queries for which the papers state their schedules."""


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Search):
    """Square and Sparse-RS: no gradients, one forward pass a query.

    Args:
        queries: forward passes per restart at the most, the start included.
        objective: what is maximised; only a change that raises it is kept.
        rescale_schedule: stretch the schedule, stated for 10,000 queries, to ``queries``.
    """

    queries: int = 5000
    objective: Objective = field(default_factory=Margin)
    rescale_schedule: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1:
            raise UserError(f"queries must be >= 1, got {self.queries}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.queries,
            "rescale_schedule": self.rescale_schedule,
            "restarts": self.restarts,
            "objective": self.objective.name,
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        return self.restarts * self.queries

    def stage(self, query: int, borders: tuple[int, ...]) -> int:
        """How many borders of a schedule for 10,000 queries lie before this query."""
        place = query * SCHEDULE_LENGTH // self.queries if self.rescale_schedule else query
        return bisect_left(borders, place)

    @abstractmethod
    def begin(self, clean: Tensor, index: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The first images, ``(b, C, H, W)``, and what else is to be remembered about each of them, ``(b, n)``."""

    @abstractmethod
    def draws_needed(self, shape: torch.Size, query: int) -> int:
        """Random numbers a sample of shape ``(C, H, W)`` needs at this query and, at the most, at later ones."""

    @abstractmethod
    def propose(self, image: Tensor, clean: Tensor, memory: Tensor, drawn: Tensor, query: int) -> tuple[Tensor, Tensor]:
        """Changed copies of the images and of what is remembered about them.

        Args:
            image: the best images so far, ``(b, C, H, W)``.
            clean: the clean images.
            memory: as ``begin`` gave it.
            drawn: uniform random numbers, ``(b, draws_needed)`` or more.
            query: 1 for the first proposal.
        """

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Asks about one proposal a query; the samples that are fooled leave."""
        image, memory = self.begin(batch.clean, batch.index, draws)
        value, drawn = self._asked(batch, image), image
        for query in range(1, self.queries):
            image, memory, value, drawn = batch.drop_fooled(image, memory, value, drawn)
            if not len(batch):
                return
            place = query % BLOCK
            if place == 0 or query == 1:
                count = self.draws_needed(image.shape[1:], query)
                drawn = draws.uniforms(BLOCK * count, batch.index, "proposals", query // BLOCK)
                drawn = drawn.view(len(batch), BLOCK, count)
            proposal, changed = self.propose(image, batch.clean, memory, drawn[:, place], query)
            found = self._asked(batch, proposal)
            better = found > value
            image = torch.where(better[:, None, None, None], proposal, image)
            if memory.shape[1]:
                memory = torch.where(better[:, None], changed, memory)
            value = torch.where(better, found, value)

    def _asked(self, batch: ActiveBatch, image: Tensor) -> Tensor:
        """The objective, which is never a number that nothing could exceed."""
        output, margin = batch.evaluate(image)
        value = -margin if self.objective == self.decision else self.objective(output, batch.label)
        return value.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
