"""Moments of features by class: all that Gaussian detectors need of a training set, in a size that does not grow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.base import Fit
from robustfg.detectors.features import feature_of


@dataclass(frozen=True)
class Moments:
    """Sums in float64 on the CPU.

    They are of the raw features: float64 loses no more of a variance than float32 features already have.

    Attributes:
        count: ``(K,)`` samples of every class.
        sums: ``(K, D)`` of features by class.
        products: ``(D, D)`` of outer products over all classes, right on and below the diagonal; ``(0, 0)`` where they
            are not wanted.
    """

    count: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def none(cls, classes: int, dim: int, *, products: bool) -> "Moments":
        """Of no samples."""
        side = dim if products else 0
        zeros = (torch.zeros(shape, dtype=torch.float64) for shape in ((classes,), (classes, dim), (side, side)))
        return cls(*zeros)

    def add(self, feature: Tensor, label: Tensor) -> None:
        """Takes in features ``(B, D)`` of classes ``(B,)``, in place."""
        rows, label = feature.detach().cpu().double(), label.cpu()
        self.count.index_add_(0, label, torch.ones(len(label), dtype=torch.float64))
        self.sums.index_add_(0, label, rows)
        if self.products.numel() and len(rows):
            # Half the work of a product. BLAS stores columns one after the other: it sees both transposed.
            dsyrk(1.0, rows.numpy().T, beta=1.0, c=self.products.numpy().T, overwrite_c=True)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.sums + other.sums, self.products + other.products)

    @property
    def total(self) -> float:
        """Number of samples."""
        return float(self.count.sum())

    def mean(self) -> Tensor:
        """Of all samples, ``(D,)``."""
        return self.sums.sum(0) / self.total

    def means(self) -> Tensor:
        """By class, ``(K, D)``; NaN for a class without samples."""
        return self.sums / self.count[:, None]

    def within(self) -> Tensor:
        """The covariance ``(D, D)`` around the class means, shared by all classes."""
        means = self.sums / self.count.clamp_min(1)[:, None]
        return (self._symmetric() - self.sums.t() @ means) / self.total

    def overall(self) -> Tensor:
        """The covariance ``(D, D)`` around the mean of all."""
        return self._symmetric() / self.total - torch.outer(self.mean(), self.mean())

    def _symmetric(self) -> Tensor:
        return self.products.tril() + self.products.tril(-1).t()


class MomentFit(Fit):
    """Gathers moments of some features and hands those of all processes over.

    Args:
        features: names.
        learn: called with the moments of every feature, in order.
        products: gather outer products too.
    """

    def __init__(
        self, features: Sequence[str], learn: Callable[[list[Moments]], None], *, products: bool = True
    ) -> None:
        self.features, self.learn, self.products = features, learn, products
        self.moments: list[Moments] = []

    def see(self, output: Output, label: Tensor, index: Tensor) -> None:
        rows = [feature_of(output, name) for name in self.features]
        if not self.moments:
            classes = output.logits.shape[1]
            self.moments = [Moments.none(classes, row.shape[1], products=self.products) for row in rows]
        for moments, row in zip(self.moments, rows, strict=True):
            moments.add(row, label)

    def findings(self) -> list[Moments]:
        return self.moments

    def conclude(self, findings: Sequence[list[Moments]]) -> None:
        seen = [found for found in findings if found]  # a process may have had no sample
        if not seen:
            raise UserError("detector: there are no training samples to learn from")
        moments = [reduce(Moments.__add__, parts) for parts in zip(*seen, strict=True)]
        for name, found in zip(self.features, moments, strict=True):
            if not (found.sums.isfinite().all() and found.products.isfinite().all()):
                raise UserError(f"detector: {name} of some training images is not finite; the classifier has diverged")
        self.learn(moments)
