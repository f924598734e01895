"""Splits of files with bounding boxes and part locations, cut to the box where that is asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, Point
from robustfg.data.files import FileSplit, read_image

CROPPED = "images are cropped to the annotated box, at test time too"


def crops(crop: str | None) -> bool:
    """Whether images are cut to their boxes. Raises ``UserError`` for anything but null and box."""
    if crop not in (None, "box"):
        raise UserError(f"data.crop must be null or box, got {crop}")
    return crop == "box"


@dataclass(frozen=True)
class StoredSplit(FileSplit):
    """Images as stored, whatever their EXIF data say: annotations were made in that frame, and papers read them so."""

    def image(self, position: int) -> NDArray[np.uint8]:
        return read_image(self.root / self.keys[position], upright=False)


@dataclass(frozen=True)
class BoxedSplit(StoredSplit):
    """Images with one bounding box each; satisfies ``WithBox``."""

    boxes: Sequence[Box] = field(repr=False)
    """In pixels of the stored image."""
    cropped: bool
    """Cut images to their boxes."""

    def image(self, position: int) -> NDArray[np.uint8]:
        return self.framed(super().image(position), position)

    def box(self, position: int) -> Box:
        """The bounding box, in the image that ``image`` returns."""
        box, frame = self.stored_box(position), self.frame(position)
        return box._replace(left=box.left - frame.left, top=box.top - frame.top)

    def stored_box(self, position: int) -> Box:
        """The bounding box, in the stored image."""
        return self.boxes[position]

    def frame(self, position: int) -> Box:
        """Whole pixels of the stored image that ``image`` shows; they may reach beyond its right and lower edge."""
        if not self.cropped:
            return Box(0, 0, math.inf, math.inf)
        box = self.stored_box(position)
        left, top = max(math.floor(box.left), 0), max(math.floor(box.top), 0)
        return Box(left, top, math.ceil(box.left + box.width) - left, math.ceil(box.top + box.height) - top)

    def framed(self, pixels: NDArray, position: int) -> NDArray:
        """What ``image`` shows of a stored image, or of a mask of its size."""
        if not self.cropped:
            return pixels
        left, top, width, height = map(int, self.frame(position))
        cut = pixels[top : top + max(height, 0), left : left + max(width, 0)]
        if cut.size == 0:
            raise UserError(
                f"data.crop=box: the box {tuple(self.stored_box(position))} of {self.root / self.keys[position]} lies "
                f"outside the image of {pixels.shape[1]} x {pixels.shape[0]} pixels"
            )
        return np.ascontiguousarray(cut)


@dataclass(frozen=True)
class KeypointSplit(BoxedSplit):
    """Images with a box and part locations; satisfies ``WithKeypoints`` too."""

    part_names: tuple[str, ...]
    points: NDArray[np.float32] = field(repr=False)
    """``(N, parts, 2)``: x and y in the stored image; NaN where a part is not visible."""

    def keypoints(self, position: int) -> dict[str, Point]:
        """Places of the visible parts by name, in the image that ``image`` returns; those outside it are left out."""
        left, top, width, height = self.frame(position)
        found = {}
        for name, (x, y) in zip(self.part_names, self.points[position].tolist(), strict=True):
            if left <= x < left + width and top <= y < top + height:  # False for NaN
                found[name] = Point(x - left, y - top)
        return found
