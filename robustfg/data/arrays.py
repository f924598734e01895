"""A split whose images already lie in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ArraySplit:
    """Images as one array; satisfies ``Split``."""

    images: NDArray[np.uint8]
    """``(N, H, W)`` grey or ``(N, H, W, 3)`` RGB."""
    labels: NDArray[np.int64]
    """``(N,)``."""
    name: str
    """Prefix of the keys, such as ``"train"``."""

    @property
    def keys(self) -> Sequence[str]:
        return [f"{self.name}/{position:06d}" for position in range(len(self.labels))]

    def image(self, position: int) -> NDArray[np.uint8]:
        pixels = self.images[position]
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
