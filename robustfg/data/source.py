"""What a data set must offer: labelled images in named splits, nothing else."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Split(Protocol):
    """One split of a source. Positions run from 0 to ``len(labels) - 1`` and are the samples' stable ids."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample, shape ``(N,)``."""

    @property
    def keys(self) -> Sequence[str]:
        """A name for every sample that says where it comes from, such as its path below the root."""

    def image(self, position: int) -> NDArray[np.uint8]:
        """The image at ``position``, shape ``(H, W, 3)``, RGB."""


class Source(Protocol):
    """A data set with its own train and test splits. What else one may know is in ``annotations.py``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""

    @property
    def genera(self) -> tuple[str, ...] | None:
        """The coarser class of every class, where a taxonomy is known."""

    @property
    def train(self) -> Split:
        """What may be trained on."""

    @property
    def test(self) -> Split:
        """What is tested on, once."""

    @property
    def val(self) -> Split | None:
        """What checkpoints are chosen on; None where it has to be carved from train."""
