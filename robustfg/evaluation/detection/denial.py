"""The attacker who wants right images rejected."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks import Attack, GradientAttack, Threat
from robustfg.core.types import Output, decision_margin, logits_of


@dataclass(frozen=True, kw_only=True)
class RightAndRejected:
    """The smaller of the decision margin and (score - tau) / c: positive where the class is right and it is rejected.

    Args:
        detector: whose score.
        tau: its threshold.
        scale: c.
    """

    detector: str
    tau: float
    scale: float
    name = "right_and_rejected"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        assert isinstance(output, Output)
        excess = (output.scores[self.detector] - self.tau) / self.scale
        return torch.minimum(decision_margin(logits_of(output), label), excess)


def denial(detector: str, threat: Threat, *, tau: float, scale: float, steps: int, restarts: int, seed: int) -> Attack:
    """PGD on what the attacker wants, which also decides."""
    wanted = RightAndRejected(detector=detector, tau=tau, scale=scale)
    return GradientAttack(
        name=f"forced_rejection/{detector}/pgd", threat=threat, objective=wanted, decision=wanted, steps=steps,
        restarts=restarts, random_start=True, seed=seed,
    )  # fmt: skip
