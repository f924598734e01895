"""Any tree of images with one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.files import FileSplit
from robustfg.data.layout import TREE, Layout, layout_of
from robustfg.data.listing import SHOWN, Listing, Paths, listed
from robustfg.data.splits import Positions, stratified
from robustfg.data.stored import Members


class Folder:
    """An ImageFolder tree, with or without given splits.

    A split's folder may have any of the usual names, in any case: see ``layout.ROLES``. A given validation folder
    serves as validation where there is a test folder, and as test where there is none. Images in deeper folders and
    behind links belong to the class on top.

    Args:
        root: the tree's folder.
        test_fraction: share of every class set aside for the test where no test folder is given; 1 makes everything
            the test split, for evaluating a finished model.

    Attributes:
        found: what the tree looks like and what was left out, in lines for the user.
    """

    def __init__(self, *, root: str | None, test_fraction: float = 0.2) -> None:
        if root is None:
            raise UserError(f"data.root is not set; it must name a folder like {TREE}")
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise UserError(f"data.root={folder}: no such folder; expected {TREE}")
        if not 0 < test_fraction <= 1:
            raise UserError(f"data.test_fraction must be in (0, 1], got {test_fraction}")
        listing = listed(folder)
        layout = layout_of(folder, listing)
        self.genera = None
        self.taxonomy: Taxonomy = {}
        self.val: FileSplit | None = None
        self.classes = layout.classes
        self.found = layout.found
        splits = _labelled(folder, listing, layout)
        self._every = list(splits.values())
        if "train" in splits and "test" in splits:
            self.train, self.test, self.val = splits["train"], splits["test"], splits.get("val")
        else:
            (every,) = self._every
            kept, aside = stratified(every.labels, test_fraction, seed=0)
            self.train, self.test = (_subset(every, positions) for positions in (kept, aside))

    def take(self, train: Members, test: Members, val: Members | None) -> None:
        """Makes these files the splits, those that are gone included; satisfies ``Drawn``."""
        self.train, self.test = self._stored(train), self._stored(test)
        self.val = None if val is None else self._stored(val)

    def labels_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        return np.array([label for label, _ in self._told(keys)], np.int64)

    def _stored(self, members: Members) -> FileSplit:
        sizes = np.array([size for _, size in self._told(members.keys)], np.int64)
        return FileSplit(self.train.root, members.keys, members.labels, known_sizes=sizes)

    def _told(self, keys: Sequence[str]) -> list[tuple[int, int]]:
        """Label and bytes of today by key; -1 for both where there is no such file."""
        today: dict[str, tuple[int, int]] = {}
        for split in self._every:
            today |= zip(split.keys, zip(split.labels.tolist(), split.sizes.tolist(), strict=True), strict=True)
        return [today.get(key, (-1, -1)) for key in keys]


def _labelled(root: Path, listing: Listing, layout: Layout) -> dict[str, FileSplit]:
    """The images of every split's folder, class by class."""
    splits = {}
    for role, folder in layout.folders.items():
        label_of = np.full(len(listing.folders), -1, np.int64)
        top = {f"{folder}/{name}".lstrip("/"): label for label, name in enumerate(layout.classes)}
        depth = 1 + (folder.count("/") + 1 if folder else 0)
        for number, below in enumerate(listing.folders):
            label_of[number] = top.get("/".join(below.split("/", depth)[:depth]), -1)
        labels = label_of[listing.paths.folder]
        positions = np.flatnonzero(labels >= 0)
        _refuse_empty_classes(root / folder, labels[positions], layout.classes)
        by_class = positions[np.argsort(labels[positions], kind="stable")]
        splits[role] = FileSplit(
            root, listing.paths.at(by_class), labels[by_class], known_sizes=listing.sizes[by_class]
        )
    return splits


def _refuse_empty_classes(folder: Path, labels: Positions, classes: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise UserError(f"{folder / classes[int(counts.argmin())]} holds no image ({SHOWN}); fill or remove it")


def _subset(split: FileSplit, positions: Positions) -> FileSplit:
    assert isinstance(split.keys, Paths)
    return FileSplit(split.root, split.keys.at(positions), split.labels[positions], known_sizes=split.sizes[positions])
