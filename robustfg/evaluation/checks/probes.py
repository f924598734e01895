"""Checks that need the model: run on a small balanced part of the samples, recorded like attacks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks import (
    APGD,
    L1,
    L1APGD,
    L2,
    Attack,
    CrossEntropy,
    GradientAttack,
    Linf,
    Margin,
    Objective,
    Square,
    Steepest,
    Threat,
)
from robustfg.attacks.runtime.eval_mode import attackable
from robustfg.core.types import Batch, decision_margin
from robustfg.evaluation.measure import Classify

PREFIX = "check:"
FINITE_DIFFERENCE, DETERMINISM, UNBOUNDED = (
    PREFIX + name for name in ("finite_difference", "determinism", "unbounded")
)
REFERENCE = PREFIX + "reference_"
ONE_STEP = PREFIX + "one_step_"
GRADIENT_FREE = PREFIX + "gradient_free_"


def finite_difference(model: Classify, batch: Batch, step: float = 0.01) -> Tensor:
    """Whether the gradient tells how the margin changes: central difference along it, within a factor 2; ``(B,)``.

    Args:
        model: what is attacked.
        batch: the samples; they are drawn towards grey a little so that the step stays in the box.
        step: l2 length of the step.
    """
    with attackable(model):
        image = (0.02 + 0.96 * batch.image).requires_grad_()
        margin = decision_margin(model(image.clone()).logits, batch.label)
        (gradient,) = torch.autograd.grad(margin.sum(), image)
    length = gradient.flatten(1).norm(dim=1)
    move = step * gradient / length.clamp_min(1e-30).view(-1, 1, 1, 1)
    with torch.no_grad():
        ahead, behind = (
            decision_margin(model((image.detach() + sign * move).clamp(0, 1)).logits.double(), batch.label)
            for sign in (1, -1)
        )
    ratio: Tensor = (ahead - behind) / (2 * step * length)
    return (ratio > 0.5) & (ratio < 2)


def unbounded_attack() -> Attack:
    """PGD at epsilon 0.5 from the clean image: nothing can withstand it, so a survivor betrays a masked gradient."""
    return GradientAttack(name=UNBOUNDED, threat=Linf(epsilon=0.5), step=Steepest(size="eps/10"), steps=20)


def largest_balls(threats: Iterable[Threat]) -> list[Threat]:
    """The largest radius of every norm among l-inf, l2 and l1."""
    largest: dict[type[Threat], Threat] = {}
    for threat in threats:
        if isinstance(threat, Linf | L2 | L1) and threat.radius >= largest.get(type(threat), threat).radius:
            largest[type(threat)] = threat
    return list(largest.values())


def reference_attacks(balls: Iterable[Threat]) -> list[Attack]:
    """APGD with its own step rule on two objectives, whatever the user configured."""
    return [_apgd(threat, objective) for threat in balls for objective in (Margin(), CrossEntropy())]


def _apgd(threat: Threat, objective: Objective) -> Attack:
    name = f"{REFERENCE}{threat.norm}_{objective.name}"
    if isinstance(threat, L1):
        return L1APGD(name=name, threat=threat, objective=objective)
    return APGD(name=name, threat=threat, objective=objective)


def one_step_attacks(balls: Iterable[Threat]) -> list[Attack]:
    """One step to the border of the ball."""
    step, objective = Steepest(size="eps"), CrossEntropy()
    return [
        GradientAttack(name=f"{ONE_STEP}{threat.norm}", threat=threat, step=step, steps=1, objective=objective)
        for threat in balls
    ]


def gradient_free_attacks(balls: Iterable[Threat]) -> list[Attack]:
    """Square, which finds what a masked gradient hides."""
    squared = [threat for threat in balls if isinstance(threat, Linf | L2)]
    return [Square(name=f"{GRADIENT_FREE}{threat.norm}", threat=threat, queries=1000) for threat in squared]


@dataclass(frozen=True)
class Probe:
    """The samples on which checks run, and the attacks among the checks."""

    samples: frozenset[int]
    attacks: Mapping[str, Attack]

    @classmethod
    def on(cls, samples: Iterable[int], suite: Iterable[Attack]) -> "Probe":
        """Probes of a suite's threat models on the given sample ids."""
        balls = largest_balls(attack.threat for attack in suite)
        attacks = [
            unbounded_attack(), *one_step_attacks(balls), *reference_attacks(balls), *gradient_free_attacks(balls),
        ]  # fmt: skip
        return cls(frozenset(samples), {attack.name: attack for attack in attacks})
