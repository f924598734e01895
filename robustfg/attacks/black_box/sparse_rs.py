"""The Sparse-RS attack on a number of pixels."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.black_box.random_search import RandomSearch
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.l0 import L0
from robustfg.core.errors import UserError

BORDERS = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which fewer pixels are exchanged."""
DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)
"""By what ``alpha_init`` is divided between them (Croce et al. 2022, and the released code)."""


@dataclass(frozen=True, kw_only=True)
class SparseRS(RandomSearch):
    """Random search over which pixels change, and to which of the colour cube's corners (Croce et al. 2022).

    A query takes some of the changed pixels back and changes as many others; ``alpha_init`` of them at first, fewer
    later.

    Args:
        alpha_init: share of the changed pixels that is exchanged at first; 0.3 in the paper.
    """

    alpha_init: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, L0):
            raise UserError(f"sparse_rs knows the l0 threat, got {self.threat.norm}")
        if not 0 < self.alpha_init <= 1:
            raise UserError(f"alpha_init must be in (0, 1], got {self.alpha_init}")

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "alpha_init": self.alpha_init}

    def exchanged(self, count: int, query: int) -> int:
        """How many of ``count`` changed pixels are exchanged at this query."""
        return max(int(self.alpha_init / DIVISORS[self.stage(query, BORDERS)] * count), 1)

    def begin(self, clean: Tensor, index: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Random pixels in random corners' colours; remembered is an order of all pixels, the changed ones first."""
        batch, channels, height, width = clean.shape
        order = draws.uniforms(height * width, index, "pixels").argsort(stable=True, dim=1)
        count = self._count(clean.shape[1:])
        colours = draws.signs(channels * count, index, "colours").clamp_min(0).view(batch, channels, count)
        place = order[:, None, :count].expand(-1, channels, -1)
        return clean.flatten(2).scatter(2, place, colours.to(clean)).view_as(clean), order

    def draws_needed(self, shape: torch.Size, query: int) -> int:
        return (2 + shape[0]) * self.exchanged(self._count(shape), query)

    def propose(self, image: Tensor, clean: Tensor, memory: Tensor, drawn: Tensor, query: int) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = image.shape
        count, pixels = self._count(image.shape[1:]), height * width
        swaps = min(self.exchanged(count, query), count, pixels - count)
        outward = distinct(drawn[:, :swaps], count)
        inward = distinct(drawn[:, swaps : 2 * swaps], pixels - count) + count
        old, new = memory.gather(1, outward), memory.gather(1, inward)
        colours = (drawn[:, 2 * swaps : (2 + channels) * swaps] < 0.5).view(batch, channels, swaps)
        back, forth = (place[:, None].expand(-1, channels, -1) for place in (old, new))
        changed = image.flatten(2).scatter(2, back, clean.flatten(2).gather(2, back))
        changed = changed.scatter_(2, forth, colours.to(clean.dtype))
        return changed.view_as(image), memory.scatter(1, outward, new).scatter_(1, inward, old)

    def _count(self, shape: torch.Size) -> int:
        """Changed pixels; one always stays, so that there is something to exchange."""
        return min(int(self.threat.radius), shape[1:].numel() - 1)


def distinct(uniform: Tensor, high: int) -> Tensor:
    """Different integers in [0, high), every subset alike likely (Floyd; Bentley & Floyd 1987).

    Args:
        uniform: ``(B, n)`` uniform numbers in [0, 1), n at most ``high``.
        high: how many integers there are.

    Returns:
        ``(B, n)`` int64.
    """
    batch, count = uniform.shape
    chosen = torch.full((batch, count), -1, dtype=torch.int64, device=uniform.device)
    for place in range(count):
        last = high - count + place
        drawn = (uniform[:, place].double() * (last + 1)).long()
        taken = (chosen[:, :place] == drawn[:, None]).any(1)
        chosen[:, place] = torch.where(taken, last, drawn)
    return chosen
