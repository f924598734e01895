"""Threat models that allow any change in a part of the image: a square patch, or a frame along the border."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustfg.attacks.rng.philox import keyed_integers, keyed_uniforms
from robustfg.attacks.threats.base import Threat, ThreatError
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Region(Threat):
    """Pixels inside a region may take any value in [0, 1]; nothing outside may change.

    A step size given as a share of epsilon is a share of the whole pixel range.
    """

    @property
    def reach(self) -> float:
        return 1.0

    @abstractmethod
    def region(self, image: Tensor) -> Tensor:
        """Where images like ``image`` may change: bool, ``(1, 1, H, W)`` or ``(B, 1, H, W)``."""

    def _to_ball(self, image: Tensor, clean: Tensor) -> Tensor:
        return torch.where(self.region(clean), image, clean)

    def steepest(self, gradient: Tensor) -> Tensor:
        return torch.where(self.region(gradient), gradient.sign(), 0)

    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        values = keyed_uniforms(clean.shape[1:].numel(), index, *key).view_as(clean).to(clean)
        return torch.where(self.region(clean), values - clean, 0)

    def check(self, adversarial: Tensor, clean: Tensor) -> None:
        super().check(adversarial, clean)
        outside = (adversarial != clean) & ~self.region(clean)
        if bool(outside.any()):
            raise ThreatError(f"a pixel outside the {self.norm} changed")


@dataclass(frozen=True, kw_only=True)
class Patch(Region):
    """A square patch (Brown et al. 2017).

    Args:
        epsilon: largest share of the image's area: ``0.05``, or ``"64/1024"`` for 8 x 8 of 32 x 32 pixels.
        place: where the patch lies, from (0, 0), the upper left corner, to (1, 1), the lower right one; (0.5, 0.5) is
            the centre. None: drawn for every sample and restart, so that several restarts try several places. Only
            attacks that ask ``placed`` can do that, such as the gradient attack.
    """

    norm: ClassVar[str] = "patch"
    _smallest: ClassVar[int] = 1
    """Fewer pixels along a side are a mistake."""
    place: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.radius > 1:
            raise UserError(f"patch epsilon is a share of the image's area, at most 1, got {self.epsilon}")
        if self.place is not None and (len(self.place) != 2 or not all(0 <= share <= 1 for share in self.place)):
            raise UserError(f"patch place must be null or two numbers in [0, 1], down and right, got {self.place}")

    def side(self, image: Tensor) -> int:
        """Pixels along one side of the patch on images ``(B, C, H, W)``."""
        height, width = image.shape[2:]
        side = min(math.isqrt(math.floor(self.radius * height * width + 1e-6)), height, width)
        if side < self._smallest and self.radius:
            raise UserError(f"patch epsilon {self.epsilon} is less than one pixel of an image of {height} x {width}")
        return side

    def scaled(self, strength: float) -> "Patch":
        """``strength`` times the area, cut to whole pixels; where less than one is left, none may change."""
        return self if strength == 1 else _PartialPatch(epsilon=strength * self.radius, place=self.place)

    def placed(self, clean: Tensor, index: Tensor, *key: int | str) -> Threat:
        if self.place is not None:
            return self
        free = torch.tensor(clean.shape[2:], device=clean.device) - self.side(clean) + 1
        corner = keyed_integers(free, 2, index, *key, "place")
        return _PlacedPatch(epsilon=self.epsilon, corner=corner, length=self.side(clean))

    def region(self, image: Tensor) -> Tensor:
        if self.place is None:
            raise UserError("patch place null is drawn by the gradient attack; give a place to use another attack")
        side = self.side(image)
        corner = [round(share * (length - side)) for share, length in zip(self.place, image.shape[2:], strict=True)]
        return _square(image, torch.tensor([corner], device=image.device), side)

    def size(self, perturbation: Tensor) -> Tensor:
        """Share of the area that the smallest square around all changed pixels takes."""
        changed = (perturbation != 0).any(1)
        side = torch.maximum(_extent(changed.any(2)), _extent(changed.any(1)))
        return side.double().square() / changed[0].numel() if len(changed) else side.double()

    def check(self, adversarial: Tensor, clean: Tensor) -> None:
        if self.place is None:
            Threat.check(self, adversarial, clean)  # any place will do
        else:
            super().check(adversarial, clean)


@dataclass(frozen=True, kw_only=True)
class _PartialPatch(Patch):
    """A part of a patch: if it is less than one pixel, that is nobody's mistake."""

    _smallest: ClassVar[int] = 0


@dataclass(frozen=True, kw_only=True)
class _PlacedPatch(Patch):
    """A patch at a drawn place: ``corner`` ``(B, 2)``, the pixel at its upper left, and its side."""

    corner: Tensor
    length: int

    def side(self, image: Tensor) -> int:
        return self.length

    def region(self, image: Tensor) -> Tensor:
        return _square(image, self.corner, self.side(image))


@dataclass(frozen=True, kw_only=True)
class Frame(Region):
    """A frame along the border: adversarial frames (Zajac et al. 2019).

    Args:
        epsilon: width of the frame in whole pixels.
    """

    norm: ClassVar[str] = "frame"

    def __post_init__(self) -> None:
        if self.radius != int(self.radius):
            raise UserError(f"frame epsilon is a width in whole pixels, got {self.epsilon}")

    def scaled(self, strength: float) -> Self:
        """Rounded to whole pixels."""
        return replace(self, epsilon=round(strength * self.radius))

    def region(self, image: Tensor) -> Tensor:
        return _depth(image) <= self.radius

    def size(self, perturbation: Tensor) -> Tensor:
        """How many pixels from the border the innermost changed pixel lies, 1 for those at the border; 0 if none."""
        changed = (perturbation != 0).any(1, keepdim=True)
        return torch.where(changed, _depth(perturbation), 0).flatten(1).amax(1).double()


def _square(image: Tensor, corner: Tensor, side: int) -> Tensor:
    """The pixels of a square whose upper left one is at ``corner`` ``(B, 2)``: bool ``(B, 1, H, W)``."""
    inside = []
    for start, length in zip(corner.unbind(1), image.shape[2:], strict=True):
        away = torch.arange(length, device=image.device) - start[:, None]
        inside.append((away >= 0) & (away < side))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _extent(marked: Tensor) -> Tensor:
    """From the first to the last marked position of every row ``(B, n)``, both included; 0 where none is."""
    place = torch.arange(marked.shape[1], device=marked.device)
    first, last = torch.where(marked, place, marked.shape[1]).amin(1), torch.where(marked, place, -1).amax(1)
    return (last - first + 1).clamp_min(0)


def _depth(image: Tensor) -> Tensor:
    """Pixels from the border, 1 for those at the border: ``(1, 1, H, W)``."""
    rows, columns = (
        torch.minimum(place, length + 1 - place)
        for length in image.shape[2:]
        for place in [torch.arange(1, length + 1, device=image.device)]
    )
    return torch.minimum(rows[:, None], columns[None, :])[None, None]
