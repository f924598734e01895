"""Where the means of a mixture begin, and how they can follow the features instead of learning."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.losses.simplex import simplex


class InitialMeans(ABC):
    """Chooses the means at the start of training."""

    @abstractmethod
    def __call__(self, num_classes: int, dim: int) -> Tensor:
        """Means ``(K, D)``."""


@dataclass(frozen=True, kw_only=True)
class Drawn(InitialMeans):
    """Normal random vectors.

    Args:
        squared_length: expected, whatever D; squared distances are twice as large. 2/3 in the authors' PyTorch
            releases, where ``kaiming_normal_`` takes their gain for a slope.
    """

    squared_length: float = 2 / 3

    def __post_init__(self) -> None:
        if not self.squared_length > 0:
            raise UserError(f"loss.initial_means.squared_length must be > 0, got {self.squared_length}")

    def __call__(self, num_classes: int, dim: int) -> Tensor:
        return torch.randn(num_classes, dim) * math.sqrt(self.squared_length / dim)


@dataclass(frozen=True, kw_only=True)
class Simplex(InitialMeans):
    """The corners of a regular simplex around 0, randomly turned: all pairs at one distance.

    Args:
        distance: squared, between any two.
    """

    distance: float = 4 / 3

    def __post_init__(self) -> None:
        if not self.distance > 0:
            raise UserError(f"loss.initial_means.distance must be > 0, got {self.distance}")

    def __call__(self, num_classes: int, dim: int) -> Tensor:
        rank = num_classes - 1
        if rank > dim:
            raise UserError(
                f"loss.initial_means: a simplex of {num_classes} classes needs loss.embedding_dim >= {rank}, got {dim}"
            )
        if rank == 0:
            return torch.zeros(1, dim)
        corners = simplex(num_classes, dim, self.distance * rank / (2 * num_classes))[:, :rank]
        turn = torch.linalg.qr(torch.randn(dim, rank, dtype=torch.float64)).Q.t()
        means: Tensor = corners @ turn
        return means.to(torch.get_default_dtype())


@torch.no_grad()
def follow(means: Tensor, embedding: Tensor, label: Tensor, momentum: float) -> None:
    """Moves the mean of every class in the batch, mu <- momentum * mu + (1 - momentum) * class mean, in place.

    Class means are those of all processes' samples, so that all processes hold the same means.

    Args:
        means: ``(K, D)``.
        embedding: ``(B, D)`` of this process.
        label: ``(B,)``.
        momentum: in [0, 1).
    """
    # The last column counts.
    rows = torch.cat([embedding.to(means.dtype), means.new_ones(len(label), 1)], 1)
    sums = means.new_zeros(len(means), rows.shape[1]).index_add_(0, label, rows)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    total, count = sums[:, :-1], sums[:, -1:]
    means.copy_(torch.where(count > 0, momentum * means + (1 - momentum) * total / count.clamp_min(1), means))
