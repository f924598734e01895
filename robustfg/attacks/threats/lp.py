"""The norm balls: l-inf, l2 and l1."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from robustfg.attacks.rng.philox import keyed_normals, keyed_signs, keyed_uniforms
from robustfg.attacks.threats.base import Threat, flat_norm
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ball(Threat):
    """A ball whose radius may also differ from sample to sample, as attacks that look for the smallest one need it."""

    whole: ClassVar[bool] = False
    """Sizes are whole numbers."""

    def _to_ball(self, image: Tensor, clean: Tensor) -> Tensor:
        return self.within(image, clean, self.radius)

    @abstractmethod
    def within(self, image: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
        """The image nearest to ``image`` in a ball around ``clean``, before clipping to the box.

        Args:
            image: ``(B, C, H, W)``.
            clean: like ``image``.
            radius: of the ball, or float64 ``(B, 1, 1, 1)`` of every sample's.
        """

    @abstractmethod
    def dual(self, gradient: Tensor) -> Tensor:
        """How much a step of norm 1 raises a linear function of this gradient, float64 ``(B,)``."""


@dataclass(frozen=True, kw_only=True)
class Linf(Ball):
    """Every pixel value may change by at most epsilon.

    Example:
        >>> import torch
        >>> from robustfg.attacks import Linf
        >>> ball = Linf(epsilon="8/255")
        >>> image = torch.full((1, 3, 4, 4), 0.5)
        >>> ball.size(ball.project(image + 1, image) - image).mul(255).round().tolist()
        [8.0]
    """

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        if self.radius > 1:
            raise UserError(f"linf epsilon is a share of the pixel range, at most 1; got {self.epsilon}, not 8/255?")

    def within(self, image: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
        reach = radius.to(clean.dtype) if isinstance(radius, Tensor) else radius
        return torch.clamp(image, clean - reach, clean + reach)

    def dual(self, gradient: Tensor) -> Tensor:
        return gradient.double().flatten(1).abs().sum(1)

    def projector(self, clean: Tensor, *, once: bool = False) -> Callable[[Tensor], Tensor]:
        if once:
            return lambda image: image.sub_(clean).clamp_(-self.radius, self.radius).add_(clean).clamp_(0, 1)

        @cache  # made after the first gradient, not before: they would have left the processor's cache meanwhile
        def bounds() -> tuple[Tensor, Tensor]:
            return (clean - self.radius).clamp_(0, 1), (clean + self.radius).clamp_(0, 1)

        return lambda image: image.clamp_(*bounds())

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        draws = keyed_uniforms(clean.shape[1:].numel(), index, *key).view_as(clean)
        return ((2 * draws - 1) * self.radius).to(clean)

    def size(self, perturbation: Tensor) -> Tensor:
        low, high = perturbation.amin((1, 2, 3)), perturbation.amax((1, 2, 3))
        return torch.maximum(-low, high).double()


@dataclass(frozen=True, kw_only=True)
class L2(Ball):
    """The Euclidean length of the perturbation is at most epsilon."""

    norm: ClassVar[str] = "l2"

    def within(self, image: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
        change = image - clean
        shrink = (radius / flat_norm(change).clamp_min(1e-300)).clamp_max(1)
        return clean + change * shrink.to(change.dtype)

    def dual(self, gradient: Tensor) -> Tensor:
        return flat_norm(gradient).flatten()

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient / flat_norm(gradient).to(gradient.dtype).clamp_min(torch.finfo(gradient.dtype).tiny)

    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        dimension = clean.shape[1:].numel()
        direction = keyed_normals(dimension, index, *key, "direction")
        distance = keyed_uniforms(1, index, *key, "distance").double() ** (1 / dimension) * self.radius
        return (direction / flat_norm(direction) * distance).view_as(clean).to(clean)

    def size(self, perturbation: Tensor) -> Tensor:
        return flat_norm(perturbation).flatten()


@dataclass(frozen=True, kw_only=True)
class L1(Ball):
    """The sum of absolute changes is at most epsilon.

    Args:
        share: share of the coordinates that a steepest step moves, all by the same amount. The true steepest step
            moves one; a hundredth of them is the usual compromise (Tramer & Boneh 2019).
    """

    norm: ClassVar[str] = "l1"
    share: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UserError(f"l1 share must be in (0, 1], got {self.share}")

    def within(self, image: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
        """The nearest image of ball and box together (Croce & Hein 2021, "Mind the box")."""
        change = l1_projection(image.double() - clean.double(), clean, radius)
        moved = (clean.double() + change).to(clean.dtype)
        # A sum over all coordinates adds up float32's rounding (7e-6 at epsilon 12): round towards the clean image.
        beyond = (moved.double() - clean.double()).abs() > change.abs()
        return torch.where(beyond, torch.nextafter(moved, clean), moved)

    def dual(self, gradient: Tensor) -> Tensor:
        return gradient.double().flatten(1).abs().amax(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        count = max(1, round(self.share * flat.shape[1]))
        top = flat.abs().topk(count, dim=1).indices if flat.numel() else flat.long()
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign() / count).view_as(gradient)

    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        dimension = clean.shape[1:].numel()
        # d + 1 exponentials, normalised, are uniform on the simplex; leaving one out makes them uniform in the ball.
        exponential = -torch.log1p(-keyed_uniforms(dimension + 1, index, *key, "size").double())
        amount = exponential[:, :-1] / exponential.sum(1, keepdim=True) * self.radius
        return (amount * keyed_signs(dimension, index, *key, "sign")).view_as(clean).to(clean)

    def size(self, perturbation: Tensor) -> Tensor:
        return perturbation.double().flatten(1).abs().sum(1)


def l1_projection(change: Tensor, clean: Tensor, radius: float | Tensor) -> Tensor:
    """The point nearest to ``change`` with l1 norm at most ``radius`` and ``clean`` + point in [0, 1].

    It is sign(c) min(max(|c| - t, 0), room) with the least t >= 0 at which the norm fits. The norm is piecewise linear
    in t, with a kink at every |c| and every |c| - room, so t is found exactly by sorting the kinks.

    Args:
        change: ``(B, ...)``.
        clean: like ``change``, in [0, 1].
        radius: of the ball, or float64 ``(B, 1, 1, 1)`` of every sample's.
    """
    if isinstance(radius, Tensor):
        radius = radius.flatten(1)
    flat, base = change.double().flatten(1), clean.double().flatten(1)
    size = flat.abs()
    room = torch.where(flat > 0, 1 - base, base)
    kinks = torch.cat([size, size - room], 1)
    slopes = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    slopes = torch.where(kinks > 0, slopes, 0)
    kinks, order = kinks.clamp_min(0).sort(1, descending=True)
    slopes = slopes.gather(1, order)
    weight, mass = slopes.cumsum(1), (slopes * kinks).cumsum(1)
    following = torch.cat([kinks[:, 1:], torch.zeros_like(kinks[:, :1])], 1)
    reached = mass - following * weight >= radius  # the norm at the next kink
    place = reached.long().argmax(1, keepdim=True)
    shrink = (mass.gather(1, place) - radius) / weight.gather(1, place).clamp_min(1e-300)
    shrink = torch.where(reached.any(1, keepdim=True), shrink, 0).clamp_min(0)
    point = flat.sign() * torch.minimum((size - shrink).clamp_min(0), room)
    return point.view_as(change).to(change.dtype)
