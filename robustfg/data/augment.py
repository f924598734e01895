"""Augmentations beyond torchvision's: ProtoPNet's thirty-fold set as transforms on line, and several in a row."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from robustfg.core.errors import UserError
from robustfg.data.samples import Transform

Corners = list[list[float]]
"""Top left, top right, bottom right, bottom left, each as x and y; the image covers [0, W] x [0, H]."""


class InOrder:
    """Transforms applied one after another; without any, the image stays as it is.

    Args:
        steps: transforms of uint8 images ``(3, H, W)``.
    """

    def __init__(self, *, steps: Sequence[Transform]) -> None:
        self.steps = tuple(steps)

    def __call__(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image


class Thirtyfold:
    """ProtoPNet's offline augmentation (Chen et al. 2019, ``img_aug.py``) on line.

    There, the package Augmentor makes ten rotated, ten skewed and ten sheared copies of every training image, each
    flipped with probability 1/2, and training sees the 30 copies and never the original. Here every image that is read
    is rotated, skewed or sheared, one of the three at random, and then perhaps flipped: an epoch there is 30 epochs
    here, and no two are alike. As in Augmentor the image keeps its size and nothing black comes into it: what a
    rotation or shear leaves uncovered is cut off, and the rest is enlarged. Unlike there, angles are not rounded to
    whole degrees nor shifts to whole pixels, the rectangle left by a rotation is the exact largest of the image's
    shape, where Augmentor's formula has a slip, and interpolation is bilinear, not bicubic.

    Args:
        rotation: largest angle in degrees, to either side.
        skew: largest shift of a corner as a share of the longer side.
        shear: largest angle in degrees, along either axis, to either side.
        flip: probability of a flip from left to right.
    """

    def __init__(self, *, rotation: float = 15, skew: float = 0.2, shear: float = 10, flip: float = 0.5) -> None:
        for option, value, largest in (("rotation", rotation, 45), ("skew", skew, 1), ("shear", shear, 45)):
            if not 0 <= value <= largest:
                raise UserError(f"data.augment.{option} must be in [0, {largest}], got {value}")
        if not 0 <= flip <= 1:
            raise UserError(f"data.augment.flip must be in [0, 1], got {flip}")
        self.rotation, self.skew, self.shear, self.flip = rotation, skew, shear, flip
        self.warps: tuple[Callable[[Tensor], Tensor], ...] = (self._rotated, self._skewed, self._sheared)

    def __call__(self, image: Tensor) -> Tensor:
        """Augments an image ``(C, H, W)`` with torch's own generator."""
        warped = self.warps[_integer(3)](image)
        return functional.horizontal_flip(warped) if _uniform(0, 1) < self.flip else warped

    def _rotated(self, image: Tensor) -> Tensor:
        return rotated(image, _uniform(-self.rotation, self.rotation))

    def _skewed(self, image: Tensor) -> Tensor:
        """Augmentor draws one of four kinds: any of four tilts, left or right, up or down, or one of eight corners."""
        kind = _integer(4)
        tilts = (LEFT, RIGHT, UP, DOWN)
        towards = {0: tilts, 1: tilts[:2], 2: tilts[2:], 3: CORNERS}[kind]
        return skewed(image, towards[_integer(len(towards))], _uniform(0, self.skew) * max(image.shape[-2:]))

    def _sheared(self, image: Tensor) -> Tensor:
        return sheared(image, _uniform(-self.shear, self.shear), along_rows=_integer(2) == 0)


Shifts = tuple[tuple[int, int], ...]
"""Which way each of the four corners moves."""
STILL = (0, 0)
LEFT: Shifts = ((0, -1), STILL, STILL, (0, 1))
RIGHT: Shifts = (STILL, (0, -1), (0, 1), STILL)
UP: Shifts = ((-1, 0), (1, 0), STILL, STILL)
DOWN: Shifts = (STILL, STILL, (1, 0), (-1, 0))
OUTWARD = ((-1, -1), (1, -1), (1, 1), (-1, 1))
CORNERS: tuple[Shifts, ...] = tuple(
    tuple(STILL if place != corner else (way, 0) if axis == 0 else (0, way) for place in range(4))
    for corner, ways in enumerate(OUTWARD)
    for axis, way in enumerate(ways)
)


def rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotates clockwise; what is seen is the largest rectangle of the image's shape that the image then covers."""
    height, width = image.shape[-2:]
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    # Half extents of a rectangle of scale s, turned by the angle, must fit into the image along both axes.
    scale = min(
        width / (width * cosine + height * abs(sine)),
        height / (width * abs(sine) + height * cosine),
    )
    seen = []
    for x, y in _corners(image):
        right, down = scale * (x - width / 2), scale * (y - height / 2)
        seen.append([width / 2 + cosine * right + sine * down, height / 2 - sine * right + cosine * down])
    return _warped(image, seen, _corners(image))


def skewed(image: Tensor, shifts: Shifts, amount: float) -> Tensor:
    """Moves corners outward by ``amount`` pixels, as if the image were tilted; what leaves the frame is cut off."""
    moved = [
        [x + amount * right, y + amount * down] for (x, y), (right, down) in zip(_corners(image), shifts, strict=True)
    ]
    return _warped(image, _corners(image), moved)


def sheared(image: Tensor, degrees: float, *, along_rows: bool) -> Tensor:
    """Slants rows (or columns) by an angle; what the image still covers from edge to edge is enlarged to its size."""
    height, width = image.shape[-2:]
    slope = math.tan(math.radians(degrees))
    if along_rows:
        shift = min(abs(slope) * height, width - 1)
        top, bottom = (shift, 0.0) if slope > 0 else (0.0, shift)
        seen = [[top, 0], [width - bottom, 0], [width - top, height], [bottom, height]]
    else:
        shift = min(abs(slope) * width, height - 1)
        left, right = (shift, 0.0) if slope > 0 else (0.0, shift)
        seen = [[0, left], [width, right], [width, height - left], [0, height - right]]
    return _warped(image, seen, _corners(image))


def _corners(image: Tensor) -> Corners:
    height, width = image.shape[-2:]
    return [[0.0, 0.0], [float(width), 0.0], [float(width), float(height)], [0.0, float(height)]]


def _warped(image: Tensor, before: Corners, after: Corners) -> Tensor:
    """The projective map that takes four points to four others, with a rim so that edges do not fade into black."""
    if before == after:
        return image
    start, end = ([[x + 1, y + 1] for x, y in corners] for corners in (before, after))
    moved: Tensor = functional.perspective(functional.pad(image, [1], padding_mode="edge"), start, end)
    return moved[..., 1:-1, 1:-1]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _integer(count: int) -> int:
    return int(torch.randint(count, ()))
