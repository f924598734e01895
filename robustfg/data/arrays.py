"""A split whose images already lie in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

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
    numbers: NDArray[np.int64] | None = None
    """``(N,)``: of the images in the data set, for keys that no other split uses; None for their positions."""

    @property
    def keys(self) -> Sequence[str]:
        numbers = range(len(self.labels)) if self.numbers is None else self.numbers.tolist()
        return [f"{self.name}/{number:06d}" for number in numbers]

    def image(self, position: int) -> NDArray[np.uint8]:
        pixels = self.images[position]
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels

    def identity(self) -> str:
        """Tells the images and labels from others that have the same keys."""
        digest = blake2b(self.labels.tobytes(), digest_size=8)
        digest.update(self.images.tobytes())
        return digest.hexdigest()

    def content(self, position: int) -> bytes:
        """A digest of the pixels."""
        return blake2b(self.images[position].tobytes(), digest_size=16).digest()
