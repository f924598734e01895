"""Several attacks as one: the cheap ones first, each on the samples that the earlier ones left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from robustfg.attacks.base import Attack
from robustfg.attacks.batch.task import Attempt, Task
from robustfg.attacks.objectives.acceptance import Reading
from robustfg.attacks.objectives.logits import Objective
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.runtime.eval_mode import Model
from robustfg.attacks.settings import object_settings, settings_of
from robustfg.attacks.threats.base import Threat
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cascade(Attack):
    """The union of several attacks inside one threat model, for the price of the samples that stand.

    Its attempts are those of its stages in turn, so what it reports after a stage is the union so far. All stages
    have the same decision and watch the same reading.

    Args:
        attacks: the stages by name, in order.

    Example:
        >>> import torch
        >>> from robustfg.attacks import PGD, Cascade, Linf, Square
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
        >>> ball = Linf(epsilon="8/255")
        >>> stages = {"pgd": PGD(steps=5), "square": Square(threat=ball, queries=20)}
        >>> Cascade(attacks=stages)(model, images, labels).shape
        torch.Size([2, 3, 8, 8])
    """

    attacks: Mapping[str, Attack]
    threat: Threat = field(init=False)
    decision: Objective = field(init=False)
    watch: Reading | None = field(init=False)

    def __post_init__(self) -> None:
        if not self.attacks:
            raise UserError(f"{self.name}: a cascade needs attacks")
        for option, own in {"restarts": self.restarts != 1, "seed": self.seed != 0}.items():
            if own:
                raise UserError(f"{self.name}: {option} is the stages' own; leave out that of the cascade")
        first, *others = self.attacks.values()
        for other in others:
            if _allowed(other.threat) != _allowed(first.threat):
                raise UserError(f"{self.name}: all stages need the same threat, got {first.threat} and {other.threat}")
            if settings_of(other.decision) != settings_of(first.decision):
                both = f"{first.decision} and {other.decision}"
                raise UserError(f"{self.name}: all stages need the same decision, got {both}")
            if settings_of(other.watch) != settings_of(first.watch):
                both = f"{first.watch} and {other.watch}"
                raise UserError(f"{self.name}: all stages need the same watch, got {both}")
        stages = {stage: replace(attack, name=f"{self.name}.{stage}") for stage, attack in self.attacks.items()}
        object.__setattr__(self, "attacks", stages)
        object.__setattr__(self, "threat", first.threat)
        object.__setattr__(self, "decision", first.decision)
        object.__setattr__(self, "watch", first.watch)
        super().__post_init__()

    @property
    def rounds(self) -> int:
        return sum(attack.rounds for attack in self.attacks.values())

    @property
    def passes(self) -> int:
        return sum(attack.passes for attack in self.attacks.values())

    def passes_in(self, restart: int) -> int:
        attack, restart = self._stage(restart)
        return attack.passes_in(restart)

    def within(self, threat: Threat) -> Self:
        return replace(self, attacks={stage: attack.within(threat) for stage, attack in self.attacks.items()})

    def run_by(self, engine: Engine) -> Self:
        return replace(self, attacks={stage: attack.run_by(engine) for stage, attack in self.attacks.items()})

    @property
    def asking(self) -> Engine:
        return next(iter(self.attacks.values())).asking

    def told(self, confusion: Callable[[], Tensor]) -> Self:
        return replace(self, attacks={stage: attack.told(confusion) for stage, attack in self.attacks.items()})

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": max(int(str(attack.describe()["steps"])) for attack in self.attacks.values()),
            "restarts": 1,
            "objective": "cascade",
            "seed": self.seed,
            "stages": {stage: {**attack.shown(), "rounds": attack.rounds} for stage, attack in self.attacks.items()},
        }

    def attempt(self, model: Model, task: Task, restart: int, before: Attempt | None) -> Attempt:
        attack, restart = self._stage(restart)
        return attack.attempt(model, task, restart, before)

    def _stage(self, restart: int) -> tuple[Attack, int]:
        """The stage that a round belongs to, and which of its own rounds it is."""
        for attack in self.attacks.values():
            if restart < attack.rounds:
                return attack, restart
            restart -= attack.rounds
        raise IndexError(f"{self.name} has {self.rounds} rounds")

    def margins(self, model: Model, image: Tensor, label: Tensor, index: Tensor | None = None) -> Tensor:
        return next(iter(self.attacks.values())).margins(model, image, label, index)


def _allowed(threat: Threat) -> Mapping[str, object]:
    """What tells threat models apart: the radius counts, not how it was typed."""
    return {**object_settings(threat), "epsilon": threat.radius}
