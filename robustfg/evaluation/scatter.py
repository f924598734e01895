"""How embeddings scatter around the means of their classes, as sums that add up over processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.evaluation.gather import summed
from robustfg.evaluation.separation import Embeddings

WIDEST = 4096
"""Dimensions of an embedding up to which the matrix of its scatter is formed."""


@dataclass(frozen=True)
class Scatter:
    """First and second moments of ``K`` classes in ``D`` dimensions, float64."""

    count: Tensor
    """``(K,)`` samples."""
    means: Tensor
    """``(K, D)``; NaN where a class has no sample."""
    within: Tensor
    """``(D, D)``: sum over all samples of (x - m)(x - m)^T, m the mean of the sample's own class."""
    squares: Tensor
    """``(K,)``: sum over a class's samples of |x - m|^2."""

    def principal(self) -> tuple[Tensor, Tensor]:
        """Directions ``(D, r)`` in which classes scatter, the widest first, and the scatter along each ``(r,)``.

        ``r`` is the numerical rank.
        """
        values, vectors = torch.linalg.eigh(self.within)
        lowest = values.amax() * len(values) * torch.finfo(torch.float32).eps ** 2  # embeddings come in float32
        kept = (values > lowest).nonzero().flatten().flip(0)
        return vectors[:, kept], values[kept]


def scatter_of(embeddings: Embeddings, num_classes: int) -> Scatter:
    """The scatter over all processes, of which every one must ask."""
    count, means = embeddings.means(num_classes)
    embedding, label, _ = embeddings.own()
    away = embedding.double() - means[label]
    squares = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, label, away.square().sum(1))
    return Scatter(count, means, summed(away.T @ away), summed(squares))
