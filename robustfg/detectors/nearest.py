"""Squared distances to many points, and the nearest of them."""

import torch
from torch import Tensor


def squared_distances(feature: Tensor, points: Tensor) -> Tensor:
    """||f_i - p_j||^2 of features ``(B, D)`` and points ``(N, D)``, ``(B, N)``, by one matrix product."""
    own, theirs = feature.square().sum(1, keepdim=True), points.square().sum(1)
    return (torch.addmm(theirs, feature, points.t(), alpha=-2) + own).clamp_min(0)


@torch.no_grad()
def nearest(feature: Tensor, points: Tensor, count: int) -> Tensor:
    """Which points ``(N, D)`` are nearest to features ``(B, D)``, ``(B, count)``, nearest first."""
    return torch.addmm(points.square().sum(1), feature, points.t(), alpha=-2).topk(count, largest=False).indices


def squared_distance(feature: Tensor, points: Tensor) -> Tensor:
    """||f_i - p||^2 to the nearest of the points ``(N, D)``, ``(B,)``, summed over differences: nothing cancels."""
    return (feature - points[nearest(feature, points, 1)[:, 0]]).square().sum(1)
