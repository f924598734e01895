"""What prototypes see in a latent map, in one differentiable operation that keeps no distance map."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 2**18}
CHUNK_ELSEWHERE = 2**24
"""Distances that are held at once: about a processor's cache, or enough to keep a GPU busy."""

NEAR = 0.1
"""Below this squared distance ||z||^2 - 2 z.p + ||p||^2 is too inexact in float32 for the similarity's logarithm: the
difference of the vectors is taken instead."""


def prototype_evidence(
    latent: Tensor, prototypes: Tensor, table: Tensor, attention: Tensor | None = None, epsilon: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Evidence for every prototype and the distance to the nearest prototype of every class.

    With d the squared distance between a position's latent vector and a prototype and s = log((d + 1) / (d + epsilon)),
    the evidence is the largest product of s and attention over all positions (Nakka & Salzmann 2020; without attention
    that of ProtoPNet, Chen et al. 2019). Backward follows the positions and prototypes that were chosen, nothing else.

    Args:
        latent: ``(B, D, h, w)``.
        prototypes: ``(P, D)``.
        table: ``(J, K)`` which prototypes belong to each of K classes, each at least once. A class with fewer than J
            repeats one.
        attention: ``(B, 1, h, w)``, how much every position counts; None for 1 everywhere.
        epsilon: of the similarity.

    Returns:
        ``(B, P)`` evidence and ``(B, K, h, w)`` squared distances.
    """
    height, width = latent.shape[2:]
    # Never in half precision: a distance is a small difference of large numbers.
    with torch.autocast(latent.device.type, enabled=False):
        rows = latent.to(prototypes.dtype).flatten(2).transpose(1, 2)
        weight = None if attention is None else attention.to(prototypes.dtype).flatten(1)
        evidence, distance = _Evidence.apply(rows.contiguous(), prototypes, table, weight, epsilon)
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
    """Latent rows ``(B, T, D)`` and attention ``(B, T)`` to evidence ``(B, P)`` and class distances ``(B, T, K)``.

    Keeps, beside its inputs, the position chosen by every prototype and the distance there. The nearest prototype of a
    class is looked up again where a gradient asks for it, which is at few positions and classes.
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, prototypes: Tensor, table: Tensor, attention: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        batch, positions, _ = latent.shape
        by_table = prototypes[table.flatten()]
        distance = latent.new_empty(batch, table.numel())
        position = torch.empty_like(distance, dtype=torch.int64)
        nearest = latent.new_empty(batch, positions, table.shape[1])
        for part, distances in distances_by_chunk(latent, by_table):
            torch.amin(distances.view(-1, positions, *table.shape), 2, out=nearest[part])
            if attention is None:
                torch.min(distances, 1, out=(distance[part], position[part]))
            else:
                weighted = _similarity(distances, epsilon).mul_(attention[part, :, None])
                position[part] = weighted.max(1).indices
                torch.gather(distances, 1, position[part, None], out=distance[part, None])
        place = torch.empty_like(table.flatten()).resize_(len(prototypes))
        place[table.flatten()] = torch.arange(table.numel(), device=table.device)
        distance, position = (found.index_select(1, place) for found in (distance, position))
        sample, column = (distance < NEAR).nonzero(as_tuple=True)
        row = sample * positions + position[sample, column]
        for part, difference in _differences(latent.flatten(0, 1), prototypes, row, column):
            distance[sample[part], column[part]] = difference.square_().sum(1)
        evidence = _similarity(distance, epsilon)
        if attention is not None:
            evidence *= attention.gather(1, position)
        ctx.save_for_backward(latent, prototypes, table, attention, position, distance)
        ctx.epsilon = epsilon
        ctx.set_materialize_grads(False)
        return evidence, nearest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_evidence: Tensor | None, to_nearest: Tensor | None) -> tuple[Tensor | None, ...]:
        latent, prototypes, table, attention, position, distance = ctx.saved_tensors
        rows, columns, slopes, near = [], [], [], position.new_empty(0)
        to_latent = to_prototypes = to_attention = None
        (batch, positions, _), count = latent.shape, len(prototypes)
        if to_evidence is not None:
            slope = to_evidence * (ctx.epsilon - 1) / ((distance + 1) * (distance + ctx.epsilon))
            if attention is not None:
                slope *= attention.gather(1, position)
                if ctx.needs_input_grad[3]:
                    by_position = _similarity(distance, ctx.epsilon).mul_(to_evidence)
                    to_attention = torch.zeros_like(attention).scatter_add_(1, position, by_position)
            first = torch.arange(0, batch * positions, positions, device=latent.device)
            rows.append((first[:, None] + position).flatten())
            columns.append(torch.arange(count, device=latent.device).repeat(batch))
            slopes.append(slope.flatten())
            near = (distance < NEAR).flatten().nonzero().flatten()  # these pairs stand first
        if to_nearest is not None:
            sample, place, of_class = to_nearest.nonzero(as_tuple=True)
            rows.append(sample * positions + place)
            columns.append(_nearest_of_class(latent[sample, place], prototypes, table.t()[of_class]))
            slopes.append(to_nearest[sample, place, of_class])
        if rows and any(ctx.needs_input_grad[:2]):
            with torch.autocast(latent.device.type, enabled=False):
                pairs = torch.cat(rows), torch.cat(columns), torch.cat(slopes)
                to_latent, to_prototypes = _pull(latent, prototypes, *pairs, near, ctx.needs_input_grad)
        return to_latent, to_prototypes, None, to_attention, None


def _similarity(distance: Tensor, epsilon: float) -> Tensor:
    """log((d + 1) / (d + epsilon)), in a tensor of its own."""
    return (distance + epsilon).reciprocal_().mul_(1 - epsilon).add_(1).log_()


def _nearest_of_class(latent: Tensor, prototypes: Tensor, candidates: Tensor) -> Tensor:
    """Which of some prototypes ``(n, J)`` is nearest to each latent vector ``(n, D)``, ``(n,)``."""
    nearest = torch.empty_like(candidates[:, 0])
    for part in chunks(len(latent), candidates.shape[1] * prototypes.shape[1], latent.device):
        distances = prototypes[candidates[part]].sub_(latent[part, None]).square_().sum(2)
        torch.gather(candidates[part], 1, distances.argmin(1, keepdim=True), out=nearest[part, None])
    return nearest


def _pull(
    latent: Tensor,
    prototypes: Tensor,
    row: Tensor,
    column: Tensor,
    slope: Tensor,
    near: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of sum_i slope_i ||z_row(i) - p_column(i)||^2 to the latent vectors and the prototypes.

    Those of the pairs ``near``, whose slopes are steep, are summed pair by pair.
    """
    rows, far = latent.flatten(0, 1), slope.index_fill(0, near, 0)
    to_rows = _apart(rows, prototypes, row, column, far) if needed[0] else None
    to_prototypes = _apart(prototypes, rows, column, row, far) if needed[1] else None
    row, column, slope = row[near], column[near], slope[near]
    for part, difference in _differences(rows, prototypes, row, column):
        difference *= 2 * slope[part, None]
        if to_rows is not None:
            to_rows.index_add_(0, row[part], difference)
        if to_prototypes is not None:
            to_prototypes.index_add_(0, column[part], difference, alpha=-1)
    return None if to_rows is None else to_rows.view_as(latent), to_prototypes


def _differences(rows: Tensor, prototypes: Tensor, row: Tensor, column: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which pairs, and z_row(i) - p_column(i) ``(n, D)``, some at a time."""
    for part in chunks(len(row), prototypes.shape[1], rows.device):
        yield part, rows[row[part]] - prototypes[column[part]]


def _apart(here: Tensor, there: Tensor, at: Tensor, other: Tensor, slope: Tensor) -> Tensor:
    """2 sum_i slope_i (here_at(i) - there_other(i)), summed at every row of ``here``."""
    place, order = at.sort(stable=True)
    weight = 2 * slope[order]
    first = torch.searchsorted(place, torch.arange(len(here), device=at.device))
    pull = F.embedding_bag(other[order], there, first, mode="sum", per_sample_weights=weight)
    total = here.new_zeros(len(here)).index_add_(0, place, weight)
    return torch.addcmul(-pull, total[:, None], here)
