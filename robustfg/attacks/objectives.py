"""What an attack maximises: functions of a classifier's output and the true label, ``(B,)``."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from robustfg.types import Output, decision_margin, logits_of


class Objective(Protocol):
    """A score of every sample that grows as the classifier gets nearer to a mistake."""

    name: str

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor: ...


class CrossEntropy:
    """Cross-entropy of the true class. Its float32 gradient is exactly 0 from a logit gap of 104."""

    name = "cross_entropy"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(output), label, reduction="none")


class Margin:
    """Largest wrong logit minus the true one (Carlini & Wagner 2017, f6). Does not saturate."""

    name = "margin"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return -decision_margin(logits_of(output), label)
