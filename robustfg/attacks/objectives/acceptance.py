"""What a detector says of an answer, and the threshold below which it accepts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output, logits_of

Reading = Callable[[Output | Tensor], Tensor]
"""How abnormal an input looks, ``(B,)``, or another number of every sample, read from the model's answer."""


@dataclass(frozen=True)
class ScoreOf:
    """Reads the score of one detector, ``(B,)``, from ``Output.scores``.

    Args:
        name: the detector's.
    """

    name: str

    def __call__(self, output: Output | Tensor) -> Tensor:
        known = output.scores if isinstance(output, Output) else {}
        if self.name not in known:
            has = f"it has {', '.join(sorted(known))}" if known else "none watches it"
            raise UserError(f"detector: the model has no detector {self.name!r}; {has}")
        return known[self.name]


def squared_distances(output: Output | Tensor) -> Tensor:
    """D_k of a head whose logits are -D_k / 2, ``(B, K)``."""
    return -2 * logits_of(output)


def scale_of(tau: float, scale: float | None) -> float:
    """The unit c in which excesses over ``tau`` are told. Raises ``UserError`` unless it is positive and finite."""
    chosen = scale if scale is not None else tau
    if not 0 < chosen < torch.inf:
        raise UserError(f"scale must be > 0, such as the clean scores' deviation, where tau is not; got {chosen}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What accepts scores of at most tau.

    Args:
        tau: threshold on the score.
        scale: c, the unit of excesses; None: tau, which must then be positive.
    """

    tau: float
    scale: float | None = None

    def __post_init__(self) -> None:
        _ = self.unit

    @property
    def unit(self) -> float:
        """C."""
        return scale_of(self.tau, self.scale)

    def excess(self, score: Tensor) -> Tensor:
        """How far scores are above tau in units of c: negative exactly where ``score <= tau``."""
        return (score - self.tau) / self.unit - torch.finfo(score.dtype).eps * (score <= self.tau)
