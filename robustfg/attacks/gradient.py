"""The gradient attack: FGSM, BIM, MIM and PGD are four settings of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.base import Attack, Attempt, checked
from robustfg.attacks.freeze import Model, attackable
from robustfg.attacks.objectives import Margin, Objective
from robustfg.attacks.steps import StepRule
from robustfg.errors import UserError
from robustfg.types import decision_margin, logits_of


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Projected gradient ascent on an objective, inside a threat model (Madry et al. 2018).

    The worst iterate is kept, judged by the decision margin, and a sample that is fooled takes no further steps.

    Args:
        step: the step rule.
        steps: gradient steps per restart.
        objective: what is maximised.
        random_start: start at a point drawn uniformly from the ball; otherwise at the clean image. With several
            restarts and no random start the first begins at the clean image and the others at random.
        last_iterate: return the last iterate whether or not an earlier one was worse, as much published code does.
    """

    step: StepRule
    steps: int
    objective: Objective = field(default_factory=Margin)
    random_start: bool = False
    last_iterate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "step_rule": type(self.step).__name__.lower(),
            **{f"step_{option}": str(value) for option, value in vars(self.step).items()},
            "random_start": self.random_start,
            "last_iterate": self.last_iterate,
            "restarts": self.restarts,
            "objective": self.objective.name,
            "seed": self.seed,
        }

    def attempts(
        self, model: Model, image: Tensor, label: Tensor, index: Tensor, *, draw: int = 0
    ) -> Iterator[Attempt]:
        for restart in range(self.restarts):
            with attackable(model):
                clean, target = checked(image, label)
                start = clean
                if self.random_start or restart:
                    noise = self.threat.uniform(clean, index, self.seed, self.name, draw, restart)
                    start = self.threat.project(clean + noise, clean)
                attempt = self._ascend(model, clean, start, target)
            self.threat.check(attempt.image, clean)
            yield attempt

    def _ascend(self, model: Model, clean: Tensor, start: Tensor, label: Tensor) -> Attempt:
        """Climbs from ``start``; only the samples named by ``alive`` still take part."""
        worst, worst_margin = start.clone(), start.new_full((len(start),), float("inf"))
        forwards, first_success = torch.zeros_like(label), torch.full_like(label, -1)
        backwards, dead = torch.zeros_like(label), torch.zeros_like(label, dtype=torch.bool)
        alive, current, memory = torch.arange(len(start), device=start.device), start, None
        for taken in range(self.steps + 1):
            if len(alive) == 0:
                break
            current = current.detach().requires_grad_(taken < self.steps)
            output = model(current)
            margin = decision_margin(logits_of(output).detach(), label[alive])
            forwards[alive] += 1
            fooled = margin < 0
            first_success[alive[fooled & (first_success[alive] < 0)]] = taken
            better = torch.ones_like(fooled) if self.last_iterate else margin < worst_margin[alive]
            worst[alive[better]] = current.detach()[better]
            worst_margin[alive[better]] = margin[better]
            if taken == self.steps:
                break
            gradient = _gradient(self.objective(output, label[alive]).sum(), current)
            backwards[alive] += 1
            finite = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            if taken == 0:
                dead = (finite.flatten(1).abs().amax(1) == 0) | (finite != gradient).flatten(1).any(1)
            with torch.no_grad():
                moved, memory = self.step(current, finite, memory, self.threat)
                current = self.threat.project(moved, clean[alive])
                if not self.last_iterate and bool(fooled.any()):
                    alive, current = alive[~fooled], current[~fooled]
                    memory = memory if memory is None else memory[~fooled]
        return Attempt(worst, worst_margin, first_success, forwards, backwards, dead)


def _gradient(value: Tensor, image: Tensor) -> Tensor:
    """Derivative of ``value``; zero where the model cut the graph, which is then told as a dead gradient."""
    gradient = torch.autograd.grad(value, image, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(image) if gradient is None else gradient
