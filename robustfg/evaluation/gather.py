"""Bringing plain objects of all processes together, outside the batch loop."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from robustfg.training.gather import gathered

__all__ = ["claimed", "gathered", "summed", "total"]


def total(values: Iterable[float]) -> list[float]:
    """Element-wise sums over all ranks."""
    return [sum(column) for column in zip(*gathered(list(values)), strict=True)]


def summed(tensor: Tensor) -> Tensor:
    """The sum of a CPU tensor over all ranks, added in the same order everywhere."""
    return torch.stack(gathered(tensor)).sum(0)


def claimed(margins: Sequence[Mapping[int, float]], rank: int) -> dict[int, float]:
    """The samples whose worst margin over all ranks is this rank's, with that margin; a tie is the first rank's.

    Args:
        margins: of every rank, the worst margin by sample.
        rank: this one.
    """
    owner: dict[int, int] = {}
    for other, found in enumerate(margins):
        for index, margin in found.items():
            if index not in owner or margin < margins[owner[index]][index]:
                owner[index] = other
    return {index: margins[rank][index] for index, of in owner.items() if of == rank}
