"""Points to which features are near or far."""

import torch
from torch import Tensor

from robustfg.detectors.learned import Learned


class Points(Learned):
    """Finds the nearest of many points.

    Attributes:
        rows: the points ``(N, D)``.
        lengths: their squared lengths ``(N,)``.
    """

    rows: Tensor
    lengths: Tensor

    def __init__(self) -> None:
        super().__init__("rows", "lengths")

    def learn(self, rows: Tensor) -> None:
        """Takes the points over."""
        self.keep(rows=rows, lengths=torch.linalg.vector_norm(rows, dim=1).square())

    @torch.no_grad()
    def nearest(self, feature: Tensor, count: int) -> Tensor:
        """Which points are nearest to features ``(B, D)``, ``(B, min(count, N))``, nearest first."""
        rows = self.known("rows")
        beyond = torch.addmm(self.lengths, feature, rows.t(), alpha=-2)  # squared distances, but for the own length
        return beyond.topk(min(count, len(rows)), largest=False).indices

    def squared_distance(self, feature: Tensor) -> Tensor:
        """||f - p||^2 to the nearest point, ``(B,)``, summed over differences: nothing cancels."""
        place = self.nearest(feature, 1)[:, 0]
        return (feature - self.rows[place]).square().sum(1)


def squared_distances(feature: Tensor, points: Tensor) -> Tensor:
    """||f_i - p_j||^2 of features ``(B, D)`` and points ``(N, D)``, ``(B, N)``, by one matrix product."""
    own, theirs = feature.square().sum(1, keepdim=True), points.square().sum(1)
    return (torch.addmm(theirs, feature, points.t(), alpha=-2) + own).clamp_min(0)
