"""Steps that raise one function and leave another one, to first order, where it is."""

import torch
from torch import Tensor

from robustfg.attacks.threats.base import Threat, flat_norm
from robustfg.attacks.threats.lp import L2, Linf
from robustfg.core.errors import UserError


def without_part_along(gradient: Tensor, normal: Tensor) -> Tensor:
    """The projection of ``gradient`` to the hyperplane orthogonal to ``normal``, ``(B, C, H, W)`` each.

    A gradient that is parallel to the normal but for rounding becomes 0; a normal of 0 takes nothing away.
    """
    wide, unit = gradient.double(), normal.double()
    unit = unit / flat_norm(unit).clamp_min(torch.finfo(torch.float64).tiny)
    rest = wide - (wide * unit).sum((1, 2, 3), keepdim=True) * unit
    rest = rest - (rest * unit).sum((1, 2, 3), keepdim=True) * unit  # once more, for what rounding had left
    negligible = flat_norm(rest) <= 4 * torch.finfo(gradient.dtype).eps * flat_norm(wide)
    return rest.masked_fill(negligible, 0).to(gradient.dtype)


def best_in_box(gradient: Tensor, normal: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The d between ``low`` <= 0 and ``high`` >= 0 that maximises <gradient, d> where <normal, d> = 0; exact.

    Of this linear program d_i is an end of its interval, chosen by the sign of g_i - v n_i, except at the one place
    where g_i / n_i = v. The dual v is the weighted median of these quotients, found by sorting them. Where nothing can
    be gained but rounding, as with parallel vectors, d is 0.

    Args:
        gradient: ``(B, N)`` float64.
        normal: ``(B, N)`` float64; 0 for no condition.
        low: ``(B, N)`` float64.
        high: ``(B, N)`` float64.
    """
    bound = normal != 0
    first, last = torch.where(normal > 0, high, low), torch.where(normal > 0, low, high)
    free = torch.where(gradient > 0, high, torch.where(gradient < 0, low, 0))
    quotient = torch.where(bound, gradient / torch.where(bound, normal, 1), torch.inf)
    order = quotient.argsort(dim=1, stable=True)
    weight = (normal * (first - last)).gather(1, order)  # what turning a coordinate takes from <normal, d>
    before = weight.cumsum(1) - weight
    surplus = (normal * first).sum(1, keepdim=True) - before
    turned = (surplus / weight.clamp_min(torch.finfo(weight.dtype).tiny)).clamp(0, 1)
    share = torch.zeros_like(turned).scatter(1, order, turned)
    step = torch.where(bound, first + share * (last - first), free)
    least = 8 * torch.finfo(step.dtype).eps * gradient.abs().sum(1, keepdim=True)
    return step.masked_fill((gradient * step).sum(1, keepdim=True) <= least, 0)


def orthogonal_step(
    threat: Threat, image: Tensor, clean: Tensor, gradient: Tensor, normal: Tensor, length: float
) -> Tensor:
    """The image after a step along ``gradient`` that is orthogonal to ``normal``, inside the threat model.

    In l2 the gradient is projected and normalised (Bryniarski et al. 2022); where the ball or the box then cuts the
    step, orthogonality is lost. In l-inf the sign of a projected gradient is not orthogonal to anything: there the step
    is the best of all those no longer than ``length`` that are orthogonal and stay inside.

    Args:
        threat: l-inf or l2.
        image: ``(B, C, H, W)`` inside the threat model.
        clean: like ``image``.
        gradient: like ``image``.
        normal: like ``image``.
        length: in the threat model's norm, > 0.
    """
    if isinstance(threat, L2):
        step = threat.steepest(without_part_along(gradient, normal))
    elif isinstance(threat, Linf):
        here, there = image.double(), clean.double()
        low = (((there - threat.radius).clamp(0, 1) - here) / length).clamp(-1, 0)
        high = (((there + threat.radius).clamp(0, 1) - here) / length).clamp(0, 1)
        flat = [tensor.double().flatten(1) for tensor in (gradient, normal, low, high)]
        step = best_in_box(*flat).view_as(image).to(image.dtype)
    else:
        raise UserError(f"orthogonal steps are known for linf and l2 threats, got {threat.norm}")
    return threat.project(image + length * step, clean)
