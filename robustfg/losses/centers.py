"""Learned class centres and the squared distances of features to them."""

import math

import torch
from torch import Tensor, nn


class Centers(nn.Module):
    """One centre a class, drawn with an expected squared length of 1.

    A centre may learn at a pace of its own: ``pace`` multiplies its gradient and nothing else, so that its learning
    rate does not depend on the weight of the term it is learned by.

    Args:
        num_classes: K.
        dim: D.
        pace: factor on the centres' gradient.
    """

    def __init__(self, *, num_classes: int, dim: int, pace: float = 1.0) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(num_classes, dim) / math.sqrt(dim))
        self.pace = pace

    def to_own(self, feature: Tensor, label: Tensor) -> Tensor:
        """||x_i - c_y||^2, ``(B,)``."""
        centers = self._paced()
        return (feature.to(centers.dtype) - centers[label]).square().sum(1)

    def to_others(self, feature: Tensor, label: Tensor) -> Tensor:
        """The mean of ||x_i - c_k||^2 over the other classes k, ``(B,)``."""
        centers = self._paced()
        feature = feature.to(centers.dtype)
        # The mean over all centres of ||x - c||^2 is ||x - m||^2 plus their own mean squared distance to their mean m.
        mean = centers.mean(0)
        spread = (centers - mean).square().sum(1).mean()
        count = len(centers)
        everyone = (feature - mean).square().sum(1) + spread
        return (count * everyone - (feature - centers[label]).square().sum(1)) / (count - 1)

    def between(self, label: Tensor) -> Tensor:
        """The mean of ||c_y - c_k||^2 over the other classes k, ``(B,)``."""
        return self.to_others(self._paced()[label], label)

    def _paced(self) -> Tensor:
        fixed = self.vectors.detach()
        return self.vectors if self.pace == 1 else fixed + self.pace * (self.vectors - fixed)
