"""The dataset that loaders read: positions of a split, decoded, transformed, with label and id."""

from collections.abc import Callable
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.data.source import Split
from robustfg.data.splits import Positions

Transform = Callable[[Tensor], Tensor]
LARGEST = 2**30
"""Bytes that an image may take while it is brought to size."""


def network_input(pixels: NDArray[np.uint8], transform: Transform) -> Tensor:
    """What a network sees of a decoded image ``(H, W, 3)``: transformed, ``(3, H', W')`` float32 in [0, 1]."""
    return transform(torch.from_numpy(pixels).permute(2, 0, 1)).contiguous().float().div_(255)


class Samples(Dataset[Batch]):
    """Some positions of a split.

    Args:
        split: where images and labels come from.
        positions: which of its samples, by id.
        transform: maps a uint8 image ``(3, H, W)`` to one of the final size.
        cache: decode everything now and keep it in memory.
        seed: with epoch and id it fixes the transform's random numbers, whatever process runs it; None where the
            transform has none.
    """

    def __init__(
        self, split: Split, positions: Positions, transform: Transform, *, cache: bool, seed: int | None = None
    ) -> None:
        self.split, self.positions, self.transform, self.seed = split, positions, transform, seed
        self.labels = torch.from_numpy(np.asarray(split.labels)[positions])
        self.decoded = [split.image(int(position)) for position in positions] if cache else None

    def __len__(self) -> int:
        return len(self.positions)

    def under(self, transform: Transform) -> "Samples":
        """The same samples, decoded at most once for both, under a transform without random numbers."""
        other = copy(self)
        other.transform, other.seed = transform, None
        return other

    def __getitem__(self, item: int) -> Batch:
        """One sample; ``item`` counts on from epoch to epoch, see ``EpochSampler``."""
        epoch, item = divmod(item, len(self))
        position = int(self.positions[item])
        pixels = self.split.image(position) if self.decoded is None else self.decoded[item]
        try:
            image = network_input(pixels, lambda image: self._transformed(image, epoch, position))
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"the image {self.split.keys[position]} of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be "
                f"brought to size ({' '.join(str(error).split())[:200]}); replace or remove it"
            ) from error
        return Batch(image, self.labels[item], torch.tensor(position))

    def _transformed(self, image: Tensor, epoch: int, position: int) -> Tensor:
        if self.seed is None:
            return self.transform(image)
        generator = torch.default_generator  # the one that transforms use; fork_rng costs more than they do
        state = generator.get_state()
        try:
            generator.manual_seed(((self.seed * 1_000_003 + epoch) * 16_777_213 + position) % 2**63)
            return self.transform(image)
        finally:
            generator.set_state(state)


class FitSquare:
    """Brings any image to ``(3, size, size)``; images that already fit pass through untouched.

    Raises ``RuntimeError`` for images so long that their scaled copy would fill the memory.

    Args:
        size: the side.
        crop_ratio: the shorter side is scaled to ``size / crop_ratio`` before the centre is cut out.
        keep_aspect: False stretches to the square instead, without cutting anything off.
    """

    def __init__(self, *, size: int, crop_ratio: float = 1.0, keep_aspect: bool = True) -> None:
        self.size, self.keep_aspect = size, keep_aspect
        self.resize = v2.Resize(round(size / crop_ratio) if keep_aspect else [size, size], antialias=True)
        self.crop = v2.CenterCrop(size)

    def __call__(self, image: Tensor) -> Tensor:
        if image.shape[1:] == (self.size, self.size):
            return image
        short, long = sorted(image.shape[1:])
        if self.keep_aspect and 3 * long * self.size**2 > LARGEST * short:
            raise RuntimeError("it is too long for its width; data.keep_aspect=false takes it")
        fitted: Tensor = self.crop(self.resize(image))
        return fitted

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where a mask ``(H, W)`` of the image lies in the fitted one: the pixels that it covers by half or more."""
        painted: Tensor = self(torch.from_numpy(mask * np.uint8(255))[None])
        covered: NDArray[np.bool_] = painted[0].numpy() > 127
        return covered

    def points(self, points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
        """Where points ``(P, 2)`` of an image lie in the fitted one; those that were cut off fall outside of it.

        Coordinates are x and y in pixels; whole numbers are the centres of pixels, (0, 0) the upper left one's.
        """
        if (height, width) == (self.size, self.size):
            return points
        before = np.array([width, height])
        resized = np.array(self.resize(torch.zeros(1, height, width, dtype=torch.uint8)).shape[:0:-1])
        cut = [round((int(side) - self.size) / 2) for side in resized]  # as torchvision rounds it
        fitted: NDArray[np.float64] = (points + 0.5) * (resized / before) - 0.5 - cut
        return fitted
