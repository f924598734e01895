"""Projections onto a hyperplane inside the box [0, 1]: exact, by sorting, for whole batches.

A change d of an image x with <w, d> = g and x + d in the box moves every coordinate along sign(g w) by some amount in
[0, room]. The smallest change in l-inf moves all by the same amount, in l2 in proportion to |w|, both up to the room;
in l1 it uses up the room of the largest |w| first (Croce & Hein 2020, "Minimally distorted adversarial examples").
"""

from functools import singledispatch

import torch
from torch import Tensor

from robustfg.attacks.threats.base import Threat, flat_norm
from robustfg.attacks.threats.lp import L1, L2, Linf
from robustfg.core.errors import UserError

TINY = 1e-300


def require_plane_norm(threat: Threat, attack: str) -> None:
    """Raises ``UserError`` for a threat model in whose norm nothing can be projected onto a hyperplane."""
    if not isinstance(threat, Linf | L2 | L1):
        raise UserError(f"{attack} needs an l-inf, l2 or l1 threat, got {type(threat).__name__}")


def change_to_plane(threat: Threat, image: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The smallest change in the threat's norm that raises a linear function by ``gap`` without leaving the box.

    Where the box does not allow that much, the change goes as far as it allows.

    Args:
        threat: says which norm; its epsilon plays no part.
        image: ``(B, ...)`` in [0, 1].
        normal: like ``image``, the function's gradient.
        gap: ``(B,)`` of either sign.

    Returns:
        The change, in the dtype of ``image``.
    """
    flat, base = normal.double().flatten(1), image.double().flatten(1)
    scale = flat.abs().amax(1, keepdim=True).clamp_min(TINY)
    wanted = gap.double()[:, None] / scale
    flat = flat / scale * wanted.sign()
    room = torch.where(flat > 0, 1 - base, base)
    amount = amounts(threat, flat.abs(), room, wanted.abs())
    return (flat.sign() * amount).view_as(image).to(image.dtype)


@singledispatch
def amounts(threat: Threat, weight: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """How far each coordinate moves: in [0, ``room``], with ``weight`` times it summing to ``wanted``.

    Args:
        threat: says which norm is the smallest.
        weight: ``(B, d)`` >= 0, float64.
        room: ``(B, d)`` >= 0.
        wanted: ``(B, 1)`` >= 0.
    """
    raise NotImplementedError(threat)


@amounts.register
def _(threat: Linf, weight: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    return torch.minimum(_level(weight, room, wanted), room)


@amounts.register
def _(threat: L2, weight: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    share = torch.where(weight > 0, room / weight.clamp_min(TINY), 0)
    return torch.minimum(_level(weight.square(), share, wanted) * weight, room)


@amounts.register
def _(threat: L1, weight: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    ranked, order = weight.sort(1, descending=True)
    limit = room.gather(1, order)
    gain = ranked * limit
    missing = wanted - (gain.cumsum(1) - gain)
    used = torch.minimum((missing / ranked.clamp_min(TINY)).clamp_min(0), limit)
    return torch.zeros_like(used).scatter(1, order, used)


def _level(weight: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """The level ``(B, 1)`` at which ``weight`` times min(level, ``room``) sums to ``wanted``; else the largest room."""
    room, order = room.sort(1)
    weight = weight.gather(1, order)
    gain = weight * room
    full = gain.cumsum(1) - gain  # what the coordinates before bring, their room used up
    rest = weight.flip(1).cumsum(1).flip(1)  # the weight of those that still move
    place = (full + rest * room < wanted).sum(1, keepdim=True).clamp_max(room.shape[1] - 1)
    level = (wanted - full.gather(1, place)) / rest.gather(1, place).clamp_min(TINY)
    return torch.minimum(level, room[:, -1:])


@singledispatch
def dual_norm(threat: Threat, normal: Tensor) -> Tensor:
    """The most that a change of norm 1 raises a linear function with this gradient, ``(B,)`` float64."""
    raise NotImplementedError(threat)


@dual_norm.register
def _(threat: Linf, normal: Tensor) -> Tensor:
    return normal.flatten(1).abs().sum(1, dtype=torch.float64)


@dual_norm.register
def _(threat: L2, normal: Tensor) -> Tensor:
    return flat_norm(normal).flatten()


@dual_norm.register
def _(threat: L1, normal: Tensor) -> Tensor:
    return normal.flatten(1).abs().amax(1).double()
