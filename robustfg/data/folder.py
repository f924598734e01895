"""Any tree of images with one folder per class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustfg.data.annotations import Taxonomy
from robustfg.data.files import FileSplit
from robustfg.data.splits import stratified
from robustfg.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TREE = "root/<class>/*.jpg, or root/train/<class>/*.jpg beside root/test/<class>/*.jpg (and root/val/… if there is one)"


class Folder:
    """An ImageFolder tree, with or without given splits.

    A given ``val`` folder serves as validation where there is a ``test`` folder, and as test where there is none.

    Args:
        root: the tree's folder.
        test_fraction: share of every class set aside for the test where no test folder is given; 1 makes everything
            the test split, for evaluating a finished model.
    """

    def __init__(self, *, root: str | None, test_fraction: float = 0.2) -> None:
        if root is None:
            raise UserError(f"data.root is not set; it must name a folder like {TREE}")
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise UserError(f"data.root={folder}: no such folder; expected {TREE}")
        if not 0 < test_fraction <= 1:
            raise UserError(f"data.test_fraction must be in (0, 1], got {test_fraction}")
        given = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
        if given and "train" not in given:
            raise UserError(f"data.root={folder} has {' and '.join(given)} but no train folder; expected {TREE}")
        self.genera = None
        self.taxonomy: Taxonomy = {}
        self.val: FileSplit | None = None
        if "train" in given and len(given) > 1:
            self.classes = _classes(given["train"])
            splits = {name: _files(folder, path, self.classes) for name, path in given.items()}
            self.train = splits["train"]
            self.test = splits.get("test", splits.get("val", self.train))
            self.val = splits.get("val") if "test" in splits else None
        else:
            tree = given.get("train", folder)
            self.classes = _classes(tree)
            every = _files(folder, tree, self.classes)
            kept, aside = stratified(every.labels, test_fraction, seed=0)
            self.train, self.test = (_subset(every, positions) for positions in (kept, aside))


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(_subfolders(folder))
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} class folders, need at least two; expected {TREE}")
    return names


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path, folder: Path, classes: tuple[str, ...]) -> FileSplit:
    unknown = [name for name in _subfolders(folder) if name not in classes]
    if unknown:
        raise UserError(f"{folder} has the class {unknown[0]!r}, which {root / 'train'} has not")
    paths, labels = [], []
    for label, name in enumerate(classes):
        tree = (path.relative_to(folder) for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        found = sorted(folder / path for path in tree if not any(part.startswith(".") for part in path.parts))
        if not found:
            raise UserError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))})")
        paths += [path.relative_to(root).as_posix() for path in found]
        labels += [label] * len(found)
    return FileSplit(root, paths, np.asarray(labels, np.int64))


def _subset(split: FileSplit, positions: NDArray[np.int64]) -> FileSplit:
    return FileSplit(split.root, [split.keys[position] for position in positions], split.labels[positions])
