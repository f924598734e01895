"""The l0 ball: how many pixels may change."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustfg.attacks.rng.philox import keyed_uniforms
from robustfg.attacks.threats.lp import Ball
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class L0(Ball):
    """At most epsilon pixels change, each as much as the box allows.

    A pixel is a place: it counts once however many of its channels change (Croce & Hein 2019). Some libraries count
    every channel by itself; their number is up to three times as large.
    """

    norm: ClassVar[str] = "l0"
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius != int(self.radius):
            raise UserError(f"l0 epsilon is a number of pixels, got {self.epsilon}")

    def scaled(self, strength: float) -> Self:
        """Rounded to whole pixels."""
        return replace(self, epsilon=round(strength * self.radius))

    def within(self, image: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
        """The nearest image of ball and box together (Croce & Hein 2019, section 3.1), up to clipping.

        Those pixels change that would otherwise be missed the most; what lies outside the box is lost anyway.
        """
        miss = (image - clean).double().square() - (image - image.clamp(0, 1)).double().square()
        order = miss.sum(1).flatten(1).argsort(dim=1, descending=True, stable=True)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place).view(len(image), 1, *image.shape[2:])
        return torch.where(rank < radius, image, clean)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient divided by its l1 norm, the step of PGD0 (Croce & Hein 2019): pixels have no length."""
        total = gradient.double().flatten(1).abs().sum(1).clamp_min(1e-300)
        return (gradient / total.view(-1, 1, 1, 1)).to(gradient.dtype)

    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        """New values, uniform in the box, for epsilon pixels chosen at random."""
        pixels = clean.shape[2:].numel()
        order = keyed_uniforms(pixels, index, *key, "pixels").argsort(dim=1, stable=True)
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, : int(self.radius)], True)
        values = keyed_uniforms(clean.shape[1:].numel(), index, *key, "values").view_as(clean).to(clean)
        return torch.where(chosen.view(-1, 1, *clean.shape[2:]), values - clean, 0)

    def size(self, perturbation: Tensor) -> Tensor:
        return (perturbation != 0).any(1).flatten(1).sum(1).double()

    def dual(self, gradient: Tensor) -> Tensor:
        """Of the one pixel that matters most, moved by 1 in every channel."""
        return gradient.double().abs().sum(1).flatten(1).amax(1)
