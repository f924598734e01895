"""Which wrong classes a targeted attack drives a sample to, one after another."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TargetChoice(ABC):
    """Chooses from the clean prediction.

    Args:
        count: how many classes; fewer where there are fewer wrong ones. Nine is auto-attack's number.
    """

    count: int = 9

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"targets.count must be >= 1, got {self.count}")

    def choose(self, logits: Tensor, label: Tensor) -> Tensor:
        """Targets ``(B, min(count, K - 1))`` int64, never the label, the most promising first.

        Args:
            logits: ``(B, K)`` of the clean images.
            label: ``(B,)`` true classes.
        """
        lowest = torch.finfo(logits.dtype).min
        finite = logits.detach().nan_to_num(nan=lowest, neginf=lowest).scatter(1, label[:, None], -torch.inf)
        order = finite.argsort(dim=1, descending=True, stable=True)[:, :-1]  # the label comes last
        first = self._preferred(order, label).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        return order.gather(1, first)[:, : self.count]

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """Settings for the record."""

    @abstractmethod
    def _preferred(self, order: Tensor, label: Tensor) -> Tensor:
        """Which of the wrong classes ``(B, K - 1)``, sorted by falling logit, come before the others; bool."""


@dataclass(frozen=True, kw_only=True)
class TopClasses(TargetChoice):
    """The wrong classes with the highest logits on the clean image (Croce & Hein 2020)."""

    def describe(self) -> Mapping[str, object]:
        return {"choice": "top_classes", "count": self.count}

    def _preferred(self, order: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(order, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Siblings(TargetChoice):
    """Classes of the true class's own group, such as species of one genus, filled up with the others.

    Both are sorted by their logit on the clean image.

    Args:
        groups: the group of every class, numbers or names. None: no class has siblings.
    """

    groups: Sequence[int | str] | None = None

    def describe(self) -> Mapping[str, object]:
        return {"choice": "siblings", "count": self.count, "groups": self.groups and list(self.groups)}

    def _preferred(self, order: Tensor, label: Tensor) -> Tensor:
        if self.groups is None:
            return torch.zeros_like(order, dtype=torch.bool)
        classes = order.shape[1] + 1
        if len(self.groups) != classes:
            raise UserError(f"targets.groups must name the group of {classes} classes, got {len(self.groups)} groups")
        known = sorted(set(self.groups), key=str)
        group = torch.tensor([known.index(name) for name in self.groups], device=order.device)
        return group[order] == group[label][:, None]
