"""The boundary of the true class, linearised at an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.hyperplane import TINY, dual_norm
from robustfg.core.types import Output, logits_of


@dataclass(frozen=True)
class Boundary:
    """The hyperplane on which another class draws level with the true one, to first order."""

    gap: Tensor
    """``(b,)`` float64, how far the other logit minus the true one must rise."""
    normal: Tensor
    """``(b, C, H, W)`` the gradient of that difference."""


def nearest_boundary(
    batch: ActiveBatch, output: Output | Tensor, image: Tensor, others: Tensor, needed: Tensor | None = None
) -> Boundary:
    """The nearest of several classes' boundaries in the threat's norm, for one backward pass a class.

    Args:
        batch: has evaluated ``image`` with ``graph``.
        output: the model's answer.
        image: ``(b, C, H, W)``.
        others: ``(b, m)`` the classes in question.
        needed: ``(b,)`` bool, the samples that need a boundary and are charged for it; None: all.
    """
    logits = logits_of(output)
    true = logits.gather(1, batch.label[:, None])
    rises = logits.gather(1, others) - true
    gaps = batch.logit_error(output)[:, None].double() - rises.detach().double()
    gap, normal = torch.zeros_like(gaps[:, 0]), torch.zeros_like(image)
    least = torch.full_like(gap, torch.inf)
    for place in range(others.shape[1]):
        gradient = batch.backward(rises[:, place], image, retain_graph=place < others.shape[1] - 1, needed=needed)
        distance = gaps[:, place].abs() / dual_norm(batch.threat, gradient).clamp_min(TINY)
        nearer = distance < least
        least = torch.where(nearer, distance, least)
        gap = torch.where(nearer, gaps[:, place], gap)
        normal = torch.where(nearer[:, None, None, None], gradient, normal)
    return Boundary(gap, normal)
