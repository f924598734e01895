"""Features of training samples that are kept, all or a few of every class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.base import Fit
from robustfg.detectors.features import feature_of

ROOM = 4096
"""Samples beyond twice the kept ones that are held before the surplus is thrown away."""


@dataclass(frozen=True)
class Bank:
    """Kept samples on the CPU.

    Attributes:
        index: ``(N,)`` ids.
        label: ``(N,)``.
        features: each ``(N, D)`` float32.
    """

    index: Tensor
    label: Tensor
    features: tuple[Tensor, ...]

    @classmethod
    def joined(cls, banks: "Sequence[Bank]") -> "Bank":
        """Several as one."""
        if len(banks) == 1:
            return banks[0]
        features = zip(*(bank.features for bank in banks), strict=True)
        return cls(
            torch.cat([bank.index for bank in banks]),
            torch.cat([bank.label for bank in banks]),
            tuple(torch.cat(parts) for parts in features),
        )

    def thinned(self, per_class: int | None, seed: int) -> "Bank":
        """The ``per_class`` samples of every class whose ids hash lowest, None: all; class by class.

        The samples and their order depend on ids, labels and seed only.
        """
        index, label = self.index.numpy(), self.label.numpy()
        if per_class is None:
            order = np.lexsort((index, label))
        else:
            order = np.lexsort((index, _hashes(index, seed), label))
            ordered = label[order]
            rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
            order = order[rank < per_class]
        chosen = torch.from_numpy(order)
        return Bank(
            self.index[chosen], self.label[chosen], tuple(rows.index_select(0, chosen) for rows in self.features)
        )


class BankFit(Fit):
    """Gathers a bank and hands that of all processes over.

    Args:
        features: names.
        learn: called with the bank, which is its own from then on, and the number of classes.
        per_class: samples to keep of every class, the same on any number of processes; None: all.
        seed: which.
    """

    def __init__(
        self, features: Sequence[str], learn: Callable[[Bank, int], None], *, per_class: int | None, seed: int
    ) -> None:
        self.features, self.learn, self.per_class, self.seed = features, learn, per_class, seed
        self.banks: list[Bank] = []
        self.classes, self.held, self.kept = 0, 0, 0
        self.strange: set[str] = set()

    def see(self, output: Output, label: Tensor, index: Tensor) -> None:
        rows = tuple(feature_of(output, name).detach().float().cpu() for name in self.features)
        self.banks.append(Bank(index.cpu(), label.cpu(), rows))
        self.classes, self.held = output.logits.shape[1], self.held + len(index)
        if self.per_class is not None and self.held > 2 * self.kept + ROOM:
            self._thin()

    def findings(self) -> tuple[int, list[Bank], set[str]]:
        if self.banks and self.per_class is not None:
            self._thin()
        return self.classes, self.banks, self.strange

    def conclude(self, findings: Sequence[tuple[int, list[Bank], set[str]]]) -> None:
        banks = [bank for _, found, _ in findings for bank in found if len(bank.index)]
        if not banks:
            raise UserError("detector: there are no training samples to learn from")
        bank = Bank.joined(banks)
        for name in sorted(self._strange(bank).union(*(strange for _, _, strange in findings))):
            raise UserError(f"detector: {name} of some training images is not finite; the classifier has diverged")
        bank = bank.thinned(self.per_class, self.seed)
        self.learn(bank, max(classes for classes, _, _ in findings))

    def _strange(self, bank: Bank) -> set[str]:
        """Features that are not finite everywhere."""
        return {name for name, rows in zip(self.features, bank.features, strict=True) if not _finite(rows)}

    def _thin(self) -> None:
        bank = Bank.joined(self.banks)
        self.strange |= self._strange(bank)
        self.banks = [bank.thinned(self.per_class, self.seed)]
        self.held = self.kept = len(self.banks[0].index)


def checked_count(option: str, value: int | None) -> int | None:
    """The number, if it is positive or None. Raises ``UserError`` otherwise."""
    if value is not None and value < 1:
        raise UserError(f"detector.{option} must be >= 1, got {value}")
    return value


def _finite(rows: Tensor) -> bool:
    return not rows.numel() or bool(torch.stack(torch.aminmax(rows)).isfinite().all())


def _hashes(index: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) of every id."""
    with np.errstate(over="ignore"):
        mixed = index.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
