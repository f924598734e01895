"""Images of classes that the classifier does not know: another data set, or any folder."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.data.annotations import WithFiles
from robustfg.data.files import FileSplit
from robustfg.data.listing import SHOWN, listed
from robustfg.data.source import Source, Split
from robustfg.data.splits import balanced_subset


class Unknown(Protocol):
    """A source of unknown images."""

    @property
    def images(self) -> Split:
        """The images; labels count classes of their own, which no classifier is asked for."""


class OtherSet:
    """The test split of another data set.

    Args:
        known: the data that the classifier knows, given by the program.
        source: the other one.
        images: how many to take, its classes in turn, in an order that is random but fixed; None for all.
    """

    def __init__(self, *, known: Source, source: Source, images: int | None = None) -> None:
        if images is not None and images < 1:
            raise UserError(f"unknown: images of another data set must be >= 1, got {images}")
        if shared := sorted(set(known.classes) & set(source.classes)):
            raise UserError(f"unknown: its class {shared[0]!r} is one of the data's, so it is not unknown")
        self.images: Split = source.test if images is None else part_of(source.test, images)


class Chosen:
    """A balanced part of a split.

    Args:
        split: the whole.
        count: how many of its samples.
    """

    def __init__(self, split: Split, count: int) -> None:
        labels = np.asarray(split.labels)
        self._split, self._positions = split, balanced_subset(labels, count)
        self.labels = labels[self._positions]
        self.keys = [split.keys[position] for position in self._positions.tolist()]

    def image(self, position: int) -> NDArray[np.uint8]:
        """The image at ``position`` of the part."""
        return self._split.image(int(self._positions[position]))


class ChosenFiles(Chosen):
    """The same of a split whose images are files."""

    def __init__(self, split: Split, count: int, sizes: NDArray[np.int64]) -> None:
        super().__init__(split, count)
        self.sizes = sizes[self._positions]


def part_of(split: Split, count: int) -> Chosen:
    """A balanced part, which knows its files where the whole does."""
    return ChosenFiles(split, count, split.sizes) if isinstance(split, WithFiles) else Chosen(split, count)


class UnknownFolder:
    """All images below a folder, whatever its subfolders mean.

    Args:
        known: the data that the classifier knows, given by the program; nothing of it is needed.
        root: the folder.
        images: how many to take, in an order that is random but fixed; None for all.
    """

    def __init__(self, *, known: Source, root: str | None, images: int | None = None) -> None:
        if root is None:
            raise UserError("unknown.folder.root is not set; it must name a folder of images")
        if images is not None and images < 1:
            raise UserError(f"unknown.folder.images must be >= 1, got {images}")
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise UserError(f"unknown.folder.root={folder}: no such folder")
        listing = listed(folder)
        keys = listing.paths
        if not len(keys):
            raise UserError(f"unknown.folder.root={folder} holds no image ({SHOWN})")
        chosen = balanced_subset(np.zeros(len(keys), np.int64), images or len(keys))
        self.images: Split = FileSplit(
            folder, keys.at(chosen), np.zeros_like(chosen), known_sizes=listing.sizes[chosen]
        )
