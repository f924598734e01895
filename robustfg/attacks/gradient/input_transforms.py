"""Random changes of images before a surrogate sees them, which make its adversarial images transfer better."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.attacks.batch.input_gradient import Change
from robustfg.attacks.rng.streams import Draws
from robustfg.core.errors import UserError


class Transform(Protocol):
    """A differentiable random change of images."""

    def drawn(self, draws: Draws, index: Tensor, step: int) -> Change:
        """The change of these samples at this step, keyed by their ids."""


@dataclass(frozen=True, kw_only=True)
class ResizeAndPad:
    """DI (Xie et al. 2019): with some probability shrink the image and pad it with grey to its size, at a random place.

    Args:
        smallest: smallest side, as a share of the image's.
        probability: of changing a sample at a step.
    """

    smallest: float = 0.9
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= 1:
            raise UserError(f"smallest must be in (0, 1], got {self.smallest}")
        if not 0 <= self.probability <= 1:
            raise UserError(f"probability must be in [0, 1], got {self.probability}")

    def drawn(self, draws: Draws, index: Tensor, step: int) -> Change:
        chance, scale, across, down = draws.uniforms(4, index, "resize", step).unbind(1)
        scale = self.smallest + (1 - self.smallest) * scale
        scale = torch.where(chance < self.probability, scale, 1)
        zero = torch.zeros_like(scale)
        # An output pixel at p shows the input pixel at (p - shift) / scale; beyond the border it is grey.
        shift_x, shift_y = (1 - scale) * (2 * across - 1), (1 - scale) * (2 * down - 1)
        rows = [
            torch.stack([1 / scale, zero, -shift_x / scale], 1),
            torch.stack([zero, 1 / scale, -shift_y / scale], 1),
        ]
        place = torch.stack(rows, 1)

        def change(image: Tensor) -> Tensor:
            grid = F.affine_grid(place.to(image), list(image.shape), align_corners=False)
            return F.grid_sample(image - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5

        return change


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """TI (Dong et al. 2019): the gradient convolved with a Gaussian kernel, as if averaged over shifts of the image.

    Args:
        size: side of the kernel, odd; 15 for 299-px images in the paper.
        deviation: standard deviation in pixels; 3 in the paper.
    """

    size: int = 15
    deviation: float = 3.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise UserError(f"size must be odd and >= 1, got {self.size}")
        if self.deviation <= 0:
            raise UserError(f"deviation must be > 0, got {self.deviation}")

    def __call__(self, gradient: Tensor) -> Tensor:
        """The smoothed gradient, ``(B, C, H, W)``."""
        place = torch.arange(self.size, device=gradient.device, dtype=gradient.dtype) - self.size // 2
        line = torch.exp(-0.5 * (place / self.deviation) ** 2)
        line = line / line.sum()
        channels = gradient.shape[1]
        down = line.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        across = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        half = self.size // 2
        smoothed = F.conv2d(gradient, down, padding=(half, 0), groups=channels)
        return F.conv2d(smoothed, across, padding=(0, half), groups=channels)
