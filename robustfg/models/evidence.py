"""What prototypes see in a latent map, in one differentiable operation that keeps no distance map."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 2**18}
CHUNK_ELSEWHERE = 2**24
"""Distances that are held at once: about a processor's cache, or enough to keep a GPU busy."""


def prototype_evidence(
    latent: Tensor, bank: Tensor, attention: Tensor | None = None, epsilon: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Evidence for every prototype and the distance to the nearest prototype of every class.

    With d the squared distance between a position's latent vector and a prototype and s = log((d + 1) / (d + epsilon)),
    the evidence is the largest product of s and attention over all positions (Nakka & Salzmann 2020; without attention
    that of ProtoPNet, Chen et al. 2019). Backward follows the positions and prototypes that were chosen, nothing else.

    Args:
        latent: ``(B, D, h, w)``.
        bank: ``(J, K, D)``, J prototypes for each of K classes. A class with fewer repeats one.
        attention: ``(B, 1, h, w)``, how much every position counts; None for 1 everywhere.
        epsilon: of the similarity.

    Returns:
        ``(B, J, K)`` evidence and ``(B, K, h, w)`` squared distances.
    """
    height, width = latent.shape[2:]
    # Never in half precision: a distance is a small difference of large numbers.
    with torch.autocast(latent.device.type, enabled=False):
        rows = latent.to(bank.dtype).flatten(2).transpose(1, 2)
        weight = None if attention is None else attention.to(bank.dtype).flatten(1)
        evidence, distance = _Evidence.apply(rows.contiguous(), bank, weight, epsilon)
        return evidence, distance.transpose(1, 2).unflatten(2, (height, width))


def distances_by_chunk(latent: Tensor, prototypes: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of latent vectors ``(B, T, D)`` and prototypes ``(P, D)``, some samples at a time.

    Yields:
        Which samples, and their distances ``(b, T, P)``, by one matrix product.
    """
    batch, positions, _ = latent.shape
    offset = prototypes.square().sum(1)
    for part in chunks(batch, positions * len(prototypes), latent.device):
        flat = latent[part].flatten(0, 1)
        distances = torch.addmm(offset, flat, prototypes.t(), alpha=-2)
        distances.add_(flat.square().sum(1, keepdim=True)).clamp_min_(0)
        yield part, distances.view(-1, positions, len(prototypes))


def chunks(count: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Cuts ``count`` items of so many numbers each into chunks that are held at once."""
    size = max(1, CHUNK.get(device.type, CHUNK_ELSEWHERE) // numbers)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class _Evidence(torch.autograd.Function):
    """Latent rows ``(B, T, D)`` and attention ``(B, T)`` to evidence ``(B, J, K)`` and class distances ``(B, T, K)``.

    Keeps, beside its inputs, the position chosen by every prototype and the distance there. The nearest prototype of a
    class is looked up again where a gradient asks for it, which is at few positions and classes.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, bank: Tensor, attention: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        (batch, positions, _), (members, classes, _) = latent.shape, bank.shape
        prototypes = bank.flatten(0, 1)
        evidence, chosen_distance = (latent.new_empty(batch, members * classes) for _ in range(2))
        position = torch.empty_like(evidence, dtype=torch.int64)
        nearest = latent.new_empty(batch, positions, classes)
        for part, distances in distances_by_chunk(latent, prototypes):
            torch.amin(distances.view(-1, positions, members, classes), 2, out=nearest[part])
            if attention is None:
                torch.min(distances, 1, out=(chosen_distance[part], position[part]))
                evidence[part] = _similarity(chosen_distance[part], epsilon)
            else:
                weighted = _similarity(distances, epsilon).mul_(attention[part, :, None])
                torch.max(weighted, 1, out=(evidence[part], position[part]))
                torch.gather(distances, 1, position[part, None], out=chosen_distance[part, None])
        ctx.save_for_backward(latent, bank, attention, position, chosen_distance)
        ctx.epsilon = epsilon
        ctx.set_materialize_grads(False)
        return evidence.view(batch, members, classes), nearest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_evidence: Tensor | None, to_nearest: Tensor | None) -> tuple[Tensor | None, ...]:
        latent, bank, attention, position, distance = ctx.saved_tensors
        rows, columns, slopes = [], [], []
        to_attention = None
        (batch, positions, _), classes = latent.shape, bank.shape[1]
        if to_evidence is not None:
            gradient = to_evidence.flatten(1)
            if attention is not None:
                if ctx.needs_input_grad[2]:
                    by_position = _similarity(distance, ctx.epsilon).mul_(gradient)
                    to_attention = torch.zeros_like(attention).scatter_add_(1, position, by_position)
                gradient = gradient * attention.gather(1, position)
            slope = (ctx.epsilon - 1) / ((distance + 1) * (distance + ctx.epsilon))
            first_row = positions * torch.arange(batch, device=latent.device)[:, None]
            rows.append((first_row + position).flatten())
            columns.append(torch.arange(position.shape[1], device=latent.device).repeat(batch))
            slopes.append((gradient * slope).flatten())
        if to_nearest is not None:
            sample, place, of_class = to_nearest.nonzero(as_tuple=True)
            rows.append(sample * positions + place)
            columns.append(_nearest_members(latent[sample, place], bank, of_class) * classes + of_class)
            slopes.append(to_nearest[sample, place, of_class])
        to_latent = to_bank = None
        if rows:
            with torch.autocast(latent.device.type, enabled=False):
                to_latent, to_bank = _pull(
                    latent, bank, torch.cat(rows), torch.cat(columns), torch.cat(slopes), ctx.needs_input_grad
                )
        return to_latent, to_bank, to_attention, None


def _similarity(distance: Tensor, epsilon: float) -> Tensor:
    """log((d + 1) / (d + epsilon)), in a tensor of its own."""
    return (distance + epsilon).reciprocal_().mul_(1 - epsilon).add_(1).log_()


def _nearest_members(latent: Tensor, bank: Tensor, of_class: Tensor) -> Tensor:
    """Which prototype of a given class ``(n,)`` is nearest to each latent vector ``(n, D)``, ``(n,)``."""
    members, _, depth = bank.shape
    by_class = bank.transpose(0, 1).contiguous()
    nearest = torch.empty_like(of_class)
    for part in chunks(len(latent), members * depth, latent.device):
        candidates = by_class[of_class[part]]
        nearest[part] = candidates.sub_(latent[part, None]).square_().sum(2).argmin(1)
    return nearest


def _pull(
    latent: Tensor, bank: Tensor, row: Tensor, column: Tensor, slope: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of sum_i slope_i ||z_row(i) - p_column(i)||^2 to the latent vectors and the prototypes."""
    z, p = latent.flatten(0, 1), bank.flatten(0, 1)
    pairs = torch.sparse_coo_tensor(torch.stack([row, column]), 2 * slope, (len(z), len(p)), check_invariants=False)
    to_latent = to_bank = None
    if needed[0]:
        total = z.new_zeros(len(z)).index_add_(0, row, 2 * slope)
        to_latent = (total[:, None] * z).sub_(pairs @ p).view_as(latent)
    if needed[1]:
        total = p.new_zeros(len(p)).index_add_(0, column, 2 * slope)
        to_bank = (total[:, None] * p).sub_(pairs.t() @ z).view_as(bank)
    return to_latent, to_bank
