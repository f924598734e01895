"""The dataset that loaders read: positions of a split, decoded, transformed, with label and id."""

from collections.abc import Callable
from copy import copy

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from robustfg.data.source import Split
from robustfg.data.splits import Positions
from robustfg.types import Batch

Transform = Callable[[Tensor], Tensor]


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
        image = self._transformed(torch.from_numpy(pixels).permute(2, 0, 1), epoch, position)
        return Batch(image.contiguous().float().div_(255), self.labels[item], torch.tensor(position))

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

    Args:
        size: the side.
        crop_ratio: the shorter side is scaled to ``size / crop_ratio`` before the centre is cut out.
        keep_aspect: False stretches to the square instead, without cutting anything off.
    """

    def __init__(self, *, size: int, crop_ratio: float = 1.0, keep_aspect: bool = True) -> None:
        self.size = size
        resize = v2.Resize(round(size / crop_ratio) if keep_aspect else [size, size], antialias=True)
        self.steps = v2.Compose([resize, v2.CenterCrop(size)])

    def __call__(self, image: Tensor) -> Tensor:
        if image.shape[1:] == (self.size, self.size):
            return image
        fitted: Tensor = self.steps(image)
        return fitted
