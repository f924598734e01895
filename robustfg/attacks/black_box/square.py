"""The Square attack."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.black_box.random_search import RandomSearch
from robustfg.attacks.black_box.square_patterns import Bumps, Flips, Peaks, Squares
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import L1, L2, Linf
from robustfg.core.errors import UserError

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Proposals of 10,000 after which the windows' area is halved (Andriushchenko et al. 2020, section 5), counted from 0
as the released code does."""


@dataclass(frozen=True, kw_only=True)
class Square(RandomSearch):
    """Random search over square windows (Andriushchenko et al. 2020), in l-inf, l2 and l1.

    Every sample has its own windows, and they reach every row and column. The released code has all samples of a batch
    share them, so that luck is shared too and its accuracies differ more from seed to seed, and never reaches the last.

    Args:
        p_init: share of the image that the first windows cover; 0.8 in AutoAttack.
    """

    p_init: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise UserError(f"p_init must be in (0, 1], got {self.p_init}")
        _ = self.squares

    @property
    def squares(self) -> Squares:
        """The windows' contents, which depend on the norm."""
        radius = self.threat.radius
        if isinstance(self.threat, Linf):
            return Flips(radius=radius)
        if isinstance(self.threat, L2):
            return Bumps(radius=radius)
        if isinstance(self.threat, L1):
            return Peaks(radius=radius)
        raise UserError(f"square knows linf, l2 and l1 threats, got {self.threat.norm}")

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "p_init": self.p_init}

    def begin(self, clean: Tensor, index: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return self.squares.start(clean, index, draws), index[:, None][:, :0]

    def draws_needed(self, shape: torch.Size, query: int) -> int:
        return self.squares.draws_needed(shape[0])

    def propose(self, image: Tensor, clean: Tensor, memory: Tensor, drawn: Tensor, query: int) -> tuple[Tensor, Tensor]:
        height, width = image.shape[2:]
        area = self.p_init * 0.5 ** self.stage(query - 1, HALVINGS) * height * width
        squares = self.squares
        return squares.propose(image, clean, drawn, squares.side(area, height, width)), memory
