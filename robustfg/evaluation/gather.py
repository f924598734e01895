"""Bringing plain objects of all processes together, outside the batch loop."""

from collections.abc import Iterable

from robustfg.training.gather import gathered

__all__ = ["gathered", "total"]


def total(values: Iterable[float]) -> list[float]:
    """Element-wise sums over all ranks."""
    return [sum(column) for column in zip(*gathered(list(values)), strict=True)]
