"""Objectives of several heads: which logits of an output an objective reads, and sums of objectives."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from robustfg.attacks.objectives.logits import Objective
from robustfg.core.errors import UserError
from robustfg.core.types import Output


def head_of(output: Output | Tensor, head: str) -> Tensor:
    """What an output holds under the name of a head, such as ``(B, K)`` logits."""
    known = output.heads if isinstance(output, Output) else {}
    if head not in known:
        has = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise UserError(f"head: the model has no head {head!r}; {has}")
    return known[head]


@dataclass(frozen=True, kw_only=True)
class OnHead:
    """An objective of another head's logits, as if they decided.

    Args:
        objective: what is asked of the logits.
        head: name of the head in ``Output.heads``.
    """

    objective: Objective
    head: str

    @property
    def name(self) -> str:
        return f"{self.objective.name} on {self.head}"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return self.objective(head_of(output, self.head), label)


@dataclass(frozen=True, kw_only=True)
class Summed:
    """The sum of several objectives, such as the cross-entropies of two heads (Nakka & Salzmann 2020, released code).

    Args:
        objectives: at least one.
    """

    objectives: Sequence[Objective]

    def __post_init__(self) -> None:
        if not self.objectives:
            raise UserError("objectives must hold at least one objective")

    @property
    def name(self) -> str:
        return " + ".join(objective.name for objective in self.objectives)

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        first, *others = (objective(output, label) for objective in self.objectives)
        return sum(others, first)
