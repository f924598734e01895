"""Objectives that drive every sample towards a wrong class of its own, ``(B,)``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.core.types import Output, logits_of


class TargetedObjective(ABC):
    """A score of every sample that grows as the classifier gets nearer to a given wrong class."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, output: Output | Tensor, label: Tensor, target: Tensor) -> Tensor:
        """``(B,)`` scores.

        Args:
            output: logits ``(B, K)`` or an output that holds them.
            label: ``(B,)`` true classes.
            target: ``(B,)`` classes to reach.
        """


class TargetedMargin(TargetedObjective):
    """The target's logit minus the true one: positive where the target beats the true class."""

    name = "targeted_margin"

    def __call__(self, output: Output | Tensor, label: Tensor, target: Tensor) -> Tensor:
        logits = logits_of(output)
        return (logits.gather(1, target[:, None]) - logits.gather(1, label[:, None])).squeeze(1)


class TargetedDLR(TargetedObjective):
    """The targeted margin divided by z1 - (z3 + z4) / 2 of the sorted logits (Croce & Hein 2020, eq. 7).

    Invariant to scale and shift. Needs four classes that are not at -inf; below that it is the targeted margin.
    """

    name = "targeted_dlr"

    def __call__(self, output: Output | Tensor, label: Tensor, target: Tensor) -> Tensor:
        logits = logits_of(output)
        margin = TargetedMargin()(logits, label, target)
        if logits.shape[1] < 4:
            return margin
        top = logits.topk(4, dim=1).values
        ratio = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
        return margin / torch.where(top[:, 3] > -torch.inf, ratio, 1)


class TargetedCrossEntropy(TargetedObjective):
    """Minus the cross-entropy of the target: its log-probability."""

    name = "targeted_cross_entropy"

    def __call__(self, output: Output | Tensor, label: Tensor, target: Tensor) -> Tensor:
        return -F.cross_entropy(logits_of(output), target, reduction="none")


@dataclass(frozen=True)
class Aimed:
    """A targeted objective whose targets are fixed, as the untargeted ones are called.

    Args:
        objective: what is maximised.
        target: ``(B,)`` classes to reach, of the same samples in the same order.
    """

    objective: TargetedObjective
    target: Tensor
    name = "aimed"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return self.objective(output, label, self.target)
