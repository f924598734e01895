"""An attack that searches by asking the attacked model."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustfg.attacks.base import Attack
from robustfg.attacks.batch.active_batch import ActiveBatch, SearchOptions
from robustfg.attacks.batch.task import Attempt, Task
from robustfg.attacks.objectives.logits import Objective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.runtime.eval_mode import Model
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Search(Attack):
    """Asks about images through an ``ActiveBatch``, which keeps the best one of every sample.

    Args:
        engine: how the model is run during the search.
    """

    engine: Engine = field(default_factory=Engine)

    additive: ClassVar[bool] = True
    """Adds a change to the image; ``Spatial`` turns it instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.additive and not self.threat.additive:
            kind = type(self).__name__
            raise UserError(f"threat {self.threat.norm} allows turned images only, which Spatial tries, not {kind}")

    @abstractmethod
    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """One round: asks about images inside ``self.threat``.

        Args:
            batch: the samples; not empty at the beginning.
            draws: this round's random numbers.
            restart: 0 for the first.
        """

    def run_by(self, engine: Engine) -> Self:
        return replace(self, engine=engine) if self.engine == Engine() else self

    @property
    def asking(self) -> Engine:
        return self.engine.exact()

    def shown(self) -> Mapping[str, object]:
        return {**super().shown(), **self.searching().describe()}

    @property
    def deciding(self) -> Objective:
        """What the search goes by: positive where the attacker has won."""
        return self.decision

    @property
    def search_options(self) -> SearchOptions:
        """What is kept of the images asked about."""
        return SearchOptions()

    @torch.inference_mode(False)
    def attempt(self, model: Model, task: Task, restart: int, before: Attempt | None) -> Attempt:
        rows = torch.arange(len(task.label), device=task.label.device)
        if before is not None:
            rows = (~(before.margin < 0)).nonzero().flatten()
            task = task if task.logits is not None else replace(task, logits=before.logits)
        found = self._found(model, task.part(rows), Draws(self.seed, self.name, task.draw, restart), restart)
        attempt = found if before is None else _after(before, rows, found)
        self.threat.check(attempt.image, task.image)
        return attempt

    def _found(self, model: Model, task: Task, draws: Draws, restart: int) -> Attempt:
        if not len(task.label):
            none = torch.zeros_like(task.label)
            margin = task.image.new_zeros(0)
            least = None if self.watch is None else margin
            return Attempt(task.image, margin, none, none, none, none.bool(), least=least)
        engine = self.searching() if self.watch is None else self.searching().exact()  # the model's own scores count
        found, differs = self._searched(model, task, draws, restart, engine)
        rows = (differs & ~(found.margin < 0)).nonzero().flatten()
        if not len(rows):
            return found
        again, _ = self._searched(model, task.part(rows), draws, restart, engine.exact())
        return _repeated(found, rows, again)

    def _searched(self, model: Model, task: Task, draws: Draws, restart: int, engine: Engine) -> tuple[Attempt, Tensor]:
        """What a round finds, and the samples that a surrogate copy has misjudged in it, ``(B,)`` bool."""
        with engine.running(model, task.image, task.classes, draws.key, self.passes // self.rounds) as run:
            batch = ActiveBatch(
                run, task, threat=self.threat, decision=self.deciding, options=self.search_options, watch=self.watch
            )
            self.search(batch, draws, restart)
            return batch.results(), batch.surrogate_differs

    def searching(self) -> Engine:
        """How the model is prepared for the search."""
        return self.engine

    def margins(self, model: Model, image: Tensor, label: Tensor, index: Tensor | None = None) -> Tensor:
        with self.asking.running(model, image, key=(self.seed, self.name, "margins")) as run, torch.no_grad():
            return -self.decision(run.own(image, index), label.clone())


def _repeated(found: Attempt, rows: Tensor, again: Attempt) -> Attempt:
    """Exchanges the samples at ``rows`` ``(n,)`` for what was found ``again``; passes of both rounds count."""
    before = found.forwards[rows]
    columns = {
        "image": again.image,
        "margin": again.margin,
        "first_success": torch.where(again.first_success < 0, -1, before + again.first_success),
        "forwards": before + again.forwards,
        "backwards": found.backwards[rows] + again.backwards,
        "dead_gradient": again.dead_gradient,
    }
    return replace(found, **{name: getattr(found, name).index_copy(0, rows, new) for name, new in columns.items()})


def _after(before: Attempt, rows: Tensor, found: Attempt) -> Attempt:
    """All samples after this round: what was found at ``rows``, and what was known before, at no cost, elsewhere.

    A sample that the model was not asked about in this round keeps what was known before, too.
    """
    asked = found.forwards > 0
    zeros = torch.zeros_like(before.forwards)
    old = (before.image, before.margin, before.first_success, zeros, zeros, zeros.bool())
    new = (found.image, found.margin, found.first_success, found.forwards, found.backwards, found.dead_gradient)
    pairs = zip(old, new, strict=True)
    columns = (column.index_copy(0, rows[asked], values[asked].to(column.dtype)) for column, values in pairs)
    logits = before.logits
    if logits is None and found.logits is not None:
        logits = found.logits.new_full((len(zeros), found.logits.shape[1]), torch.nan).index_copy(0, rows, found.logits)
    least = before.least
    if found.least is not None:
        known = torch.full_like(before.margin, torch.inf) if least is None else least
        least = known.index_copy(0, rows, torch.minimum(known[rows], found.least.to(known.dtype)))
    return replace(Attempt(*columns), logits=logits, least=least)
