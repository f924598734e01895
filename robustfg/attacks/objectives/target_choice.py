"""Which wrong classes a targeted attack drives a sample to, one after another."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.settings import tensor_sha256
from robustfg.core.errors import UserError


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
        first = self._preference(order, label).argsort(dim=1, descending=True, stable=True)
        return order.gather(1, first)[:, : self.count]

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """Settings for the record."""

    @abstractmethod
    def _preference(self, order: Tensor, label: Tensor) -> Tensor:
        """A number for each of the wrong classes ``(B, K - 1)``, sorted by falling logit: the larger come first."""


@dataclass(frozen=True, kw_only=True)
class TopClasses(TargetChoice):
    """The wrong classes with the highest logits on the clean image (Croce & Hein 2020)."""

    def describe(self) -> Mapping[str, object]:
        return {"choice": "top_classes", "count": self.count}

    def _preference(self, order: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(order)


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

    def _preference(self, order: Tensor, label: Tensor) -> Tensor:
        if self.groups is None:
            return torch.zeros_like(order)
        classes = order.shape[1] + 1
        if len(self.groups) != classes:
            raise UserError(f"targets.groups must name the group of {classes} classes, got {len(self.groups)} groups")
        known = sorted(set(self.groups), key=str)
        group = torch.tensor([known.index(name) for name in self.groups], device=order.device)
        return (group[order] == group[label][:, None]).long()


@dataclass(frozen=True, kw_only=True)
class MostConfused(TargetChoice):
    """The classes that the model most often takes the true class for.

    Those that are confused equally are sorted by their logit on the clean image.

    Args:
        confusion: ``(K, K)`` how often, counts or probabilities; rows are true classes, columns answers. None: an
            evaluation measures it on the validation split.
    """

    confusion: Sequence[Sequence[float]] | Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.confusion is not None:
            table = self._table()
            if table.dim() != 2 or table.shape[0] != table.shape[1] or not bool(table.isfinite().all()):
                raise UserError(f"targets.confusion must be K x K finite numbers, got {tuple(table.shape)}")

    def describe(self) -> Mapping[str, object]:
        known = None if self.confusion is None else tensor_sha256(self._table())[:12]
        return {"choice": "most_confused", "count": self.count, "confusion": known}

    def _preference(self, order: Tensor, label: Tensor) -> Tensor:
        if self.confusion is None:
            raise UserError("targets.confusion must be given, K x K numbers; only an evaluation measures it by itself")
        table, classes = self._table().to(order.device), order.shape[1] + 1
        if len(table) != classes:
            raise UserError(f"targets.confusion must be of {classes} classes, got {len(table)}")
        return table[label].gather(1, order)

    def _table(self) -> Tensor:
        try:
            return torch.as_tensor(self.confusion, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"targets.confusion must be K x K finite numbers: {error}") from error
