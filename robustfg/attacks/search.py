"""An attack that searches by asking the attacked model."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.base import Attack, Attempt, Task
from robustfg.attacks.draws import Draws
from robustfg.attacks.engine import Engine
from robustfg.attacks.freeze import Model
from robustfg.attacks.objectives import Margin, Objective
from robustfg.attacks.randomness import keyed_generators
from robustfg.attacks.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Search(Attack):
    """Asks a ``Victim``, which keeps the best image asked about.

    Args:
        decision: positive where the attacker has won: by default where the prediction is wrong.
        engine: how the model is run during the search.
    """

    decision: Objective = field(default_factory=Margin)
    engine: Engine = field(default_factory=Engine)

    @abstractmethod
    def search(self, victim: Victim, draws: Draws, restart: int) -> None:
        """One round: asks ``victim`` about images inside ``self.threat``.

        Args:
            victim: the samples; not empty at the beginning.
            draws: this round's random numbers.
            restart: 0 for the first.
        """

    def victim_options(self) -> Mapping[str, bool]:
        """How images are kept: ``minimum`` and ``stay`` of ``Victim``."""
        return {}

    @torch.inference_mode(False)
    def attempt(self, model: Model, task: Task, restart: int, before: Attempt | None) -> Attempt:
        new = _standing(task.image, before)
        rows = (~(new[1] < 0)).nonzero().flatten()
        if len(rows):
            draws = Draws(self.seed, self.name, task.draw, restart)
            own = keyed_generators(task.image.device, *draws.key, "model")
            with self.engine.running(model, task.image) as run, own:
                part = task.part(rows)
                victim = Victim(run, part, threat=self.threat, decision=self.decision, **self.victim_options())
                self.search(victim, draws, restart)
                for column, found in zip(new, victim.results(), strict=True):
                    column[rows] = found.to(column.dtype)
        self.threat.check(new[0], task.image)
        return Attempt(*new)

    def margins(self, model: Model, image: Tensor, label: Tensor) -> Tensor:
        with self.engine.running(model, image) as run, torch.no_grad():
            return -self.decision(run(image), label.clone())


def _standing(clean: Tensor, before: Attempt | None) -> tuple[Tensor, ...]:
    """The columns of an ``Attempt`` before a round: what was reached, at no cost."""
    zeros = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
    if before is None:
        return clean.clone(), clean.new_full((len(clean),), torch.nan), zeros - 1, zeros, zeros.clone(), zeros.bool()
    return (
        before.image.clone(), before.margin.clone(), before.first_success.clone(), zeros, zeros.clone(), zeros.bool()
    )  # fmt: skip
