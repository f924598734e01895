"""Squeezers: images with less in them than was given."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.straight_through import straight_through


class BitDepth(nn.Module):
    """Pixels rounded to so many bits; differentiated as if they were not rounded (BPDA, Athalye et al. 2018).

    Args:
        bits: from 1 to 8.
    """

    def __init__(self, *, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise UserError(f"detector.bits must be in 1 to 8, got {bits}")
        self.levels = 2**bits - 1

    def forward(self, image: Tensor) -> Tensor:
        """Rounds images in [0, 1]."""
        return straight_through((image.detach() * self.levels).round() / self.levels, image)


class MedianFilter(nn.Module):
    """The median of the window around every pixel, by channel; of an even number of pixels, the upper one.

    Its derivative is that of the pixel that is the median. Borders are mirrored.

    Args:
        size: side of the window; with an even side it reaches further to the left and up.
    """

    def __init__(self, *, size: int) -> None:
        super().__init__()
        if size < 2:
            raise UserError(f"detector.window must be >= 2, got {size}")
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """Filters images ``(B, C, H, W)``."""
        before, size = self.size // 2, self.size
        after = size - 1 - before
        padded = F.pad(image, (before, after, before, after), mode="reflect")
        windows = padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
        return torch.kthvalue(windows, size * size // 2 + 1, dim=4).values
