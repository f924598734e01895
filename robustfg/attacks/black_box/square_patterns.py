"""What Square writes into its windows: flips in l-inf, bumps that borrow norm in l2 and l1."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.attacks.black_box.windows import two_bumps, window
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import l1_projection


@dataclass(frozen=True, kw_only=True)
class Squares(ABC):
    """The starts and proposals of Square in one norm.

    Args:
        radius: of the ball.
    """

    radius: float

    @abstractmethod
    def side(self, area: float, height: int, width: int) -> int:
        """Side of a window that covers ``area`` pixels, as far as it fits."""

    @abstractmethod
    def start(self, clean: Tensor, index: Tensor, draws: Draws) -> Tensor:
        """The first images, ``(B, C, H, W)``."""

    @abstractmethod
    def draws_needed(self, channels: int) -> int:
        """Random numbers a proposal needs."""

    @abstractmethod
    def propose(self, image: Tensor, clean: Tensor, drawn: Tensor, side: int) -> Tensor:
        """Copies of the images with one window changed; ``drawn`` ``(B, draws_needed)`` uniform in [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class Flips(Squares):
    """l-inf (Andriushchenko et al. 2020, algorithm 2): a window is moved by plus or minus epsilon in each channel."""

    def side(self, area: float, height: int, width: int) -> int:
        return min(max(round(math.sqrt(area)), 1), height, width)

    def start(self, clean: Tensor, index: Tensor, draws: Draws) -> Tensor:
        """Vertical stripes one pixel wide, of a random sign in every channel."""
        batch, channels, _, width = clean.shape
        signs = draws.signs(channels * width, index, "stripes").view(batch, channels, 1, width)
        return (clean + self.radius * signs.to(clean)).clamp(0, 1)

    def draws_needed(self, channels: int) -> int:
        return 3 + channels

    def propose(self, image: Tensor, clean: Tensor, drawn: Tensor, side: int) -> Tensor:
        channels, height, width = image.shape[1:]
        place = window(side, height, width, drawn[:, :2])[:, None].expand(-1, channels, -1)
        step = (drawn[:, 3:, None] < 0.5).to(clean.dtype).mul_(2 * self.radius).sub_(self.radius)
        base, flat = clean.flatten(2).gather(2, place), image.flatten(2)
        moved = (base + step).clamp_(0, 1)
        # A window that would stay as it is gets one of the other sign patterns: some channels are flipped.
        same = (moved == flat.gather(2, place)).flatten(1).all(1)
        patterns = 2.0**channels
        flipped = 1 + (drawn[:, 2].double() * (patterns - 1)).floor()
        bits = (flipped[:, None] / 2.0 ** torch.arange(channels, device=flipped.device)).floor() % 2 == 1
        step = torch.where((same[:, None] & bits)[:, :, None], -step, step)
        return flat.scatter(2, place, (base + step).clamp_(0, 1)).view_as(image)


@dataclass(frozen=True, kw_only=True)
class Bumps(Squares):
    """l2 (Andriushchenko et al. 2020, algorithm 3).

    A bump is added to one window; another window is emptied, and its norm and what the ball has left go to the first.
    """

    order: ClassVar[int] = 2
    """Of the norm."""
    decay: ClassVar[int] = 2
    """Exponent of the bumps' terms."""

    def side(self, area: float, height: int, width: int) -> int:
        fits = min(height, width)
        return min(max(round(math.sqrt(area)), 3) // 2 * 2 + 1, fits)

    def start(self, clean: Tensor, index: Tensor, draws: Draws) -> Tensor:
        """A grid of about five by five bumps of random sign and direction."""
        batch, channels, height, width = clean.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        drawn = draws.uniforms((channels + 1) * down * across, index, "grid").view(batch, channels + 1, down, across)
        tiles = self._bump(drawn[:, -1:, :, None, :, None], side, clean) * self._sign(drawn[:, :-1, :, None, :, None])
        change = tiles.reshape(batch, channels, down * side, across * side)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        change = F.pad(change, (left, width - across * side - left, top, height - down * side - top))
        return self._image(self._grid(change, self._inside(clean)).to(clean.dtype), clean)

    def draws_needed(self, channels: int) -> int:
        return 5 + channels

    def propose(self, image: Tensor, clean: Tensor, drawn: Tensor, side: int) -> Tensor:
        channels, height, width = image.shape[1:]
        change = (image - clean).flatten(2)
        filled, emptied = (
            window(side, height, width, drawn[:, columns])[:, None].expand(-1, channels, -1)
            for columns in (slice(0, 2), slice(2, 4))
        )
        old = change.gather(2, filled)
        kept = change.scatter(2, emptied, 0).scatter_(2, filled, 0)
        before, after = (self._norm(part, 2) ** self.order for part in (change, kept))
        unused = (self._inside(clean) ** self.order - before.sum(1, keepdim=True)).clamp_min(0)
        available = (before - after + unused / channels).clamp_min(0) ** (1 / self.order)
        bump = self._bump(drawn[:, 4, None, None, None], side, clean).flatten(2) * self._sign(drawn[:, 5:, None])
        new = bump + old / self._norm(old, 2).clamp_min(1e-12)
        new = new / self._norm(new, 2).clamp_min(1e-12) * available * self._share(channels)
        return self._image(kept.scatter_(2, filled, new.to(clean.dtype)).view_as(clean), clean)

    def _share(self, channels: int) -> int:
        """How much of the norm that is there the window gets."""
        return 1

    def _grid(self, bumps: Tensor, radius: float) -> Tensor:
        """The start's perturbation, from bumps of norm 1."""
        return bumps * (radius / self._norm(bumps, (1, 2, 3)))

    def _image(self, change: Tensor, clean: Tensor) -> Tensor:
        """The allowed image with this perturbation, which the algorithm keeps inside the ball."""
        return (clean + change).clamp_(0, 1)

    def _bump(self, turned: Tensor, side: int, like: Tensor) -> Tensor:
        """Two bumps of opposite sign, of norm 1, side by side instead of one above the other where ``turned`` < 0.5."""
        bump = two_bumps(side, self.order, self.decay).to(like)
        if turned.dim() == 6:  # a grid of tiles
            return torch.where(turned < 0.5, bump.T[:, None, :], bump[:, None, :])
        return torch.where(turned < 0.5, bump.T, bump)

    def _sign(self, drawn: Tensor) -> Tensor:
        return (drawn < 0.5).double() * 2 - 1

    def _inside(self, clean: Tensor) -> float:
        """The radius less what rounding each pixel of an image can add to the norm."""
        rounding = math.pow(clean.shape[1:].numel(), 1 / self.order) * torch.finfo(clean.dtype).eps / 4
        return max(self.radius - rounding, 0.0)

    def _norm(self, change: Tensor, axes: int | tuple[int, ...]) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(change, self.order, axes, keepdim=True, dtype=torch.float64)
        return norm


@dataclass(frozen=True, kw_only=True)
class Peaks(Bumps):
    """l1, as in AutoAttack (Croce & Hein 2021, "Mind the box", and its released code).

    Bumps are steeper, get too much of the norm, and all is projected to ball and box, which leaves only their peaks:
    few pixels changed by much are what hurts most in l1.
    """

    order: ClassVar[int] = 1
    decay: ClassVar[int] = 4

    def _share(self, channels: int) -> int:
        return channels

    def _grid(self, bumps: Tensor, radius: float) -> Tensor:
        return bumps

    def _image(self, change: Tensor, clean: Tensor) -> Tensor:
        return (clean + l1_projection(change, clean, self._inside(clean))).clamp_(0, 1)
