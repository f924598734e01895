"""Several attacks as one: the cheap ones first, each on the samples that the earlier ones left."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from robustfg.attacks.base import Attack, Attempt, Task
from robustfg.attacks.freeze import Model
from robustfg.attacks.threat import Threat
from robustfg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Cascade(Attack):
    """The union of several attacks inside one threat model, for the price of the samples that stand.

    Its attempts are those of its stages in turn, so what it reports after a stage is the union so far.

    Args:
        attacks: the stages by name, in order.
    """

    attacks: Mapping[str, Attack]
    threat: Threat = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks:
            raise UserError(f"{self.name}: a cascade needs attacks")
        if self.restarts != 1:
            raise UserError(f"{self.name}: restarts are the stages' own; leave out those of the cascade")
        threats = {(attack.threat.norm, attack.threat.radius) for attack in self.attacks.values()}
        if len(threats) > 1:
            raise UserError(f"{self.name}: all stages need the same norm and epsilon, got {sorted(threats)}")
        stages = {stage: replace(attack, name=f"{self.name}.{stage}") for stage, attack in self.attacks.items()}
        object.__setattr__(self, "attacks", stages)
        object.__setattr__(self, "threat", next(iter(stages.values())).threat)

    @property
    def rounds(self) -> int:
        return sum(attack.rounds for attack in self.attacks.values())

    @property
    def passes(self) -> int:
        return sum(attack.passes for attack in self.attacks.values())

    def within(self, threat: Threat) -> Self:
        return replace(self, attacks={stage: attack.within(threat) for stage, attack in self.attacks.items()})

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": max(int(str(attack.describe()["steps"])) for attack in self.attacks.values()),
            "restarts": 1,
            "objective": "cascade",
            "seed": self.seed,
            "stages": {stage: {**attack.settings(), "rounds": attack.rounds} for stage, attack in self.attacks.items()},
        }

    def attempt(self, model: Model, task: Task, restart: int, before: Attempt | None) -> Attempt:
        for attack in self.attacks.values():
            if restart < attack.rounds:
                return attack.attempt(model, task, restart, before)
            restart -= attack.rounds
        raise IndexError(f"{self.name} has {self.rounds} rounds")

    def margins(self, model: Model, image: Tensor, label: Tensor) -> Tensor:
        return next(iter(self.attacks.values())).margins(model, image, label)
