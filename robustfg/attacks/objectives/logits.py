"""What an attack maximises: functions of a classifier's output and the true label, ``(B,)``.

An objective also serves as an attack's decision if it is positive exactly where the attacker has won (``Margin``).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.core.types import Output, decision_margin, logits_of


@runtime_checkable
class Objective(Protocol):
    """A score of every sample that grows as the classifier gets nearer to a mistake."""

    @property
    def name(self) -> str: ...

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor: ...


def finite_ends(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest and the lowest finite logit, ``(B, 1)``; 0 where none is: a class of logit -inf is no class."""
    finite = logits.isfinite()
    high = logits.masked_fill(~finite, -torch.inf).amax(1, keepdim=True)
    low = logits.masked_fill(~finite, torch.inf).amin(1, keepdim=True)
    return high.masked_fill(high.isinf(), 0), low.masked_fill(low.isinf(), 0)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the true class. Its float32 gradient is exactly 0 from a logit gap of 104."""

    name = "cross_entropy"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(output), label, reduction="none")


@dataclass(frozen=True)
class ScaledCrossEntropy:
    """Cross-entropy of logits divided by their own largest gap, taken as a constant: does not saturate.

    Args:
        gap: the largest minus the smallest logit after scaling.
    """

    gap: float = 10.0
    name = "scaled_cross_entropy"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        logits = logits_of(output)
        highest, lowest = (end.detach() / 2 for end in finite_ends(logits))  # halves, as the gap may overflow
        spread = highest - lowest
        shifted = (logits / 2 - highest) / torch.where(spread > 0, spread, 1)
        return F.cross_entropy(torch.where(spread > 0, self.gap * shifted, logits), label, reduction="none")


@dataclass(frozen=True)
class Margin:
    """Largest wrong logit minus the true one (Carlini & Wagner 2017, f6). Does not saturate."""

    name = "margin"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return -decision_margin(logits_of(output), label)


@dataclass(frozen=True)
class DifferenceOfLogitsRatio:
    """DLR (Croce & Hein 2020, eq. 6): the margin divided by the gap of first and third logit; invariant to scale.

    Needs three classes; on two it is the margin. Classes of logit -inf do not count.
    """

    name = "dlr"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        logits = logits_of(output)
        margin = -decision_margin(logits, label)
        if logits.shape[1] < 3:
            return margin
        top = logits.topk(3, dim=1).values
        return margin / torch.where(top[:, 2] > -torch.inf, top[:, 0] - top[:, 2] + 1e-12, 1)


class ComparingObjective(ABC):
    """A score of every sample that grows as the answer moves away from the clean one."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, output: Output | Tensor, clean: Tensor) -> Tensor:
        """``(B,)`` scores.

        Args:
            output: logits ``(B, K)`` or an output that holds them.
            clean: ``(B, K)`` clean logits.
        """


@dataclass(frozen=True)
class KullbackLeibler(ComparingObjective):
    """KL(p || q) from the clean prediction p to the attacked prediction q, as in TRADES (Zhang et al. 2019).

    Its gradient is 0 at the clean image, so it asks for ``random_start``. Never in half precision, where a small
    divergence is rounding.
    """

    name = "kullback_leibler"

    def __call__(self, output: Output | Tensor, clean: Tensor) -> Tensor:
        log_q, log_p = (
            logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
            for logits in (logits_of(output), clean)
        )
        none = (log_p == -torch.inf) | (log_q == -torch.inf)  # a masked class adds nothing
        return (log_p.exp() * (log_p - log_q).masked_fill(none, 0)).sum(1)


@dataclass(frozen=True)
class Compared:
    """A comparing objective whose clean logits are fixed, as the others are called.

    Args:
        objective: what is maximised.
        clean: ``(B, K)`` clean logits of the same samples in the same order.
    """

    objective: ComparingObjective
    clean: Tensor
    name = "compared"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return self.objective(output, self.clean)
