"""Where the annotated things lie in the images that the model sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from robustfg.core.types import Batch
from robustfg.data.samples import FitSquare
from robustfg.data.source import Source, Split

PARTS, OBJECT, BOX, KEYPOINTS = "parts", "object", "box", "keypoints"
TOLERANCE = 15 / 224
"""Share of the image's side by which a map's maximum may miss: 15 pixels (Zhang et al., ECCV 2016) at 224."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Regions:
    """Annotated regions of ``B`` images; a region that an image lacks is empty there."""

    masks: Mapping[str, Tensor]
    """``(B, H, W)`` bool by name: the parts that tell the true class, the object, its box."""
    near: Mapping[str, Tensor]
    """``(B, H, W)`` bool by name: within ``TOLERANCE`` of the region, or of a keypoint."""
    keypoints: Tensor | None = None
    """``(B, P, 2)`` int64, row and column of the visible keypoints; -1 fills up."""

    def __getitem__(self, rows: Tensor | slice) -> "Regions":
        return Regions(
            {name: mask[rows] for name, mask in self.masks.items()},
            {name: mask[rows] for name, mask in self.near.items()},
            None if self.keypoints is None else self.keypoints[rows],
        )


class Annotations:
    """Reads what a split says about its images, and fits it to them.

    A split may have ``parts(position)``, ``mask(position)``, ``box(position)`` and ``keypoints(position)``, and a
    source ``deciding_parts``; what is missing is left out. Without a mask the object is all of its parts.

    Args:
        source: the data set.
        split: the split that is evaluated.
        fit: how its images are brought to the model's size.
    """

    def __init__(self, source: Source, split: Split, fit: FitSquare) -> None:
        self.fit, self.split = fit, split
        self.deciding: Sequence[Sequence[str]] | None = getattr(source, "deciding_parts", None)
        self._seen: tuple[int, tuple[int, int]] | None = None
        self.parts, self.mask, self.box, self.keypoints = (
            getattr(split, name, None) for name in ("parts", "mask", "box", "keypoints")
        )

    def of(self, batch: Batch) -> Regions:
        """The regions of a batch, on its device."""
        samples = list(zip(batch.index.tolist(), batch.label.tolist(), strict=True))
        found, points = [], []
        for index, label in samples:
            found.append(self._masks(index, label))
            if self.keypoints is not None:
                points.append(self._points(index))
        nothing = np.zeros((self.fit.size, self.fit.size), bool)
        names = dict.fromkeys(name for of_sample in found for name in of_sample)
        masks = {name: np.stack([of_sample.get(name, nothing) for of_sample in found]) for name in names}
        near = {name: np.stack([_near(mask) for mask in stack]) for name, stack in masks.items()}
        if points:
            near[KEYPOINTS] = np.stack([_near(_dotted(of_sample, self.fit.size)) for of_sample in points])
        return Regions(
            _tensors(masks, batch.label.device),
            _tensors(near, batch.label.device),
            _padded(points).to(batch.label.device) if points else None,
        )

    def _masks(self, index: int, label: int) -> dict[str, Mask]:
        """The regions that the image has, in the fitted image."""
        found = {}
        parts: Mapping[str, Mask] = self.parts(index) if self.parts is not None else {}
        if parts and self.deciding:
            found[PARTS] = _union(parts, self.deciding[label])
        if self.mask is not None or parts:
            found[OBJECT] = self.mask(index) if self.mask is not None else _union(parts, parts)
        if self.box is not None:
            found[BOX] = _rectangle(self.box(index), *self._shape(index))
        return {name: self.fit.mask(mask) for name, mask in found.items()}

    def _points(self, index: int) -> NDArray[np.int64]:
        """Row and column of the keypoints that are seen in the fitted image, ``(P, 2)``."""
        assert self.keypoints is not None
        told = np.array(list(self.keypoints(index).values()), np.float64).reshape(-1, 2)
        points = np.rint(self.fit.points(told, *self._shape(index))).astype(np.int64)[:, ::-1]
        seen: NDArray[np.int64] = points[((points >= 0) & (points < self.fit.size)).all(1)]
        return seen

    def _shape(self, index: int) -> tuple[int, int]:
        """Height and width of an image before it is fitted; the last one is remembered, for it has to be decoded."""
        if self._seen is None or self._seen[0] != index:
            height, width = self.split.image(index).shape[:2]
            self._seen = index, (height, width)
        return self._seen[1]


def _union(parts: Mapping[str, Mask], names: Any) -> Mask:
    shape = next(iter(parts.values())).shape
    seen = [parts[name] for name in names if name in parts]
    union: Mask = np.any(seen, axis=0) if seen else np.zeros(shape, bool)
    return union


def _rectangle(box: Sequence[float], height: int, width: int) -> Mask:
    """The pixels whose centres lie in a box, given as left, top, width, height."""
    left, top, across, down = box
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside: Mask = ((rows >= top) & (rows < top + down))[:, None] & (columns >= left) & (columns < left + across)
    return inside


def _dotted(points: NDArray[np.int64], size: int) -> Mask:
    mask = np.zeros((size, size), bool)
    mask[points[:, 0], points[:, 1]] = True
    return mask


def _near(mask: Mask) -> Mask:
    if not mask.any():
        return mask
    near: Mask = distance_transform_edt(~mask) <= TOLERANCE * len(mask)
    return near


def _tensors(stacks: Mapping[str, Mask], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(stack).to(device) for name, stack in stacks.items()}


def _padded(points: list[NDArray[np.int64]]) -> Tensor:
    longest = max(map(len, points))
    return torch.stack(
        [torch.from_numpy(np.pad(p, ((0, longest - len(p)), (0, 0)), constant_values=-1)) for p in points]
    )
