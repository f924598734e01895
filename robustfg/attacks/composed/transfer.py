"""Transfer: images crafted on a surrogate are handed to the attacked model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from robustfg.attacks.base import Attack
from robustfg.attacks.batch.task import Attempt, Task
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.runtime.eval_mode import Model
from robustfg.attacks.runtime.validation import warn_of_answers
from robustfg.attacks.threats.base import Threat
from robustfg.core.errors import UserError
from robustfg.core.types import Output, decision_margin, logits_of


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Attacks a surrogate; a sample is broken if what was crafted there fools the attacked model.

    Every round crafts for the samples that stand. The attacked model is only asked whether it falls, on as many images
    at a time, and as often where it has random parts, as the attack's engine says.

    Args:
        attack: what is run on the surrogate. It should aim beyond the surrogate's first mistake: ``last_iterate=True``.
        surrogate: the other model.
        surrogate_name: tells surrogates apart in the record, such as a path and a hash of the weights.
    """

    attack: Attack
    surrogate: Model
    surrogate_name: str
    threat: Threat = field(init=False)

    def __post_init__(self) -> None:
        for option, own in {"restarts": self.restarts != 1, "seed": self.seed != 0}.items():
            if own:
                raise UserError(f"{self.name}: {option} is that of its attack; set attack.{option}")
        object.__setattr__(self, "attack", replace(self.attack, name=self.name))
        object.__setattr__(self, "threat", self.attack.threat)
        super().__post_init__()

    @property
    def rounds(self) -> int:
        return self.attack.rounds

    @property
    def passes(self) -> int:
        return self.rounds  # forwards of the attacked model; the surrogate's are not its own

    def passes_in(self, restart: int) -> int:
        return self.attack.passes_in(restart)  # those of the surrogate take the time

    def within(self, threat: Threat) -> Self:
        return replace(self, attack=self.attack.within(threat))

    def run_by(self, engine: Engine) -> Self:
        return replace(self, attack=self.attack.run_by(engine))

    @property
    def asking(self) -> Engine:
        return self.attack.asking

    def told(self, confusion: Callable[[], Tensor]) -> Self:
        return replace(self, attack=self.attack.told(confusion))

    def describe(self) -> Mapping[str, object]:
        return {**self.attack.shown(), "surrogate": self.surrogate_name}

    def attempt(self, model: Model, task: Task, restart: int, before: Attempt | None) -> Attempt:
        standing = torch.ones_like(task.label, dtype=torch.bool) if before is None else ~(before.margin < 0)
        part = replace(task.part(standing.nonzero().flatten()), logits=None)  # those are the attacked model's
        crafted = None
        if len(part.label):
            with lent(self.surrogate, task.image.device):
                crafted = self.attack.attempt(self.surrogate, part, restart, None)
        image = task.image.clone() if before is None else before.image.clone()
        wide = torch.promote_types(image.dtype, torch.float32)
        margin = image.new_zeros(len(image), dtype=wide) if before is None else before.margin.clone()
        first = torch.full_like(task.label, -1) if before is None else before.first_success.clone()
        least = self._least_before(margin, before)
        if crafted is not None:
            answer = self._answer(model, crafted.image, part.label, part.index)
            warn_of_answers(logits_of(answer))
            image[standing] = crafted.image
            margin[standing] = -self.decision(answer, part.label).to(margin.dtype)
            first[standing & (margin < 0)] = 0
            if self.watch is not None and least is not None:
                wrong = decision_margin(logits_of(answer), part.label) < 0
                read = self.watch(answer).to(least.dtype).masked_fill(~wrong, torch.inf)
                least[standing] = torch.fmin(least[standing], read)
        self.threat.check(image, task.image)
        spent = standing * self.asking.samples
        none = torch.zeros_like(spent)
        return Attempt(image, margin, first, spent, none, none.bool(), least=least)

    def margins(self, model: Model, image: Tensor, label: Tensor, index: Tensor | None = None) -> Tensor:
        return -self.decision(self._answer(model, image, label, index), label.detach().clone())

    def _answer(self, model: Model, image: Tensor, label: Tensor, index: Tensor | None) -> Output | Tensor:
        classes = int(label.max()) + 1 if len(label) else 0
        key = self.seed, self.name, "margins"
        with self.asking.running(model, image, classes, key) as run, torch.no_grad():
            return run(image.detach().clone(), index)

    def _least_before(self, margin: Tensor, before: Attempt | None) -> Tensor | None:
        if before is None or before.least is None:
            return None if self.watch is None else torch.full_like(margin, torch.inf)
        return before.least.clone()


@contextmanager
def lent(surrogate: Model, device: torch.device) -> Iterator[None]:
    """A module on another device, and back on its own after, also after an error."""
    tensors = [*surrogate.parameters(), *surrogate.buffers()] if isinstance(surrogate, nn.Module) else []
    homes = {tensor.device for tensor in tensors} - {device}
    if not isinstance(surrogate, nn.Module) or not homes:
        yield
        return
    if len({tensor.device for tensor in tensors}) > 1:
        raise UserError(f"surrogate must lie on one device, got {', '.join(sorted(map(str, homes | {device})))}")
    surrogate.to(device)
    try:
        yield
    finally:
        surrogate.to(homes.pop())
