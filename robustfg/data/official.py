"""What all readers of published data sets share: finding the folder, reading tables, and checking against the paper."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.archives import unpacked_safely
from robustfg.data.files import FileSplit

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Official:
    """A published data set as its authors describe it."""

    name: str
    folder: str
    """What the archive unpacks to, or torchvision's name for it."""
    archive: str
    """What to unpack, for messages."""
    classes: int
    images: Mapping[str, int]
    """Number of images in every split."""
    downloads: bool = False
    """Whether the reader can fetch it."""

    def place(self, root: str | None, marker: str) -> Path:
        """The data set's folder: ``root``, or ``folder`` below it, whichever holds ``marker``."""
        if root is None:
            raise UserError(f"data.root is not set; it must name the folder of {self.name} ({marker} …)")
        above = Path(root).expanduser()
        for folder in (above, above / self.folder):
            if (folder / marker).exists():
                return folder
        raise UserError(
            f"data.root={above}: {marker} of {self.name} is neither there nor in {self.folder} below; unpack "
            f"{self.archive} there{' or set data.download=true' if self.downloads else ''}"
        )

    def fetch(self, root: str | None, get: Callable[[Path], object]) -> None:
        """Downloads by ``get`` into ``root``, or above it where ``root`` is the data set's own folder.

        What is there is left alone by ``get``. Failures become ``UserError``.
        """
        if root is None:
            raise UserError(f"data.root is not set; it must name the folder that shall hold {self.name}")
        above = Path(root).expanduser()
        if above.name == self.folder:
            above = above.parent
        try:
            with unpacked_safely():
                get(above)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"data.download=true: {self.name} could not be fetched ({error}); unpack {self.archive} in {above}"
            ) from error

    def check(self, root: Path, classes: Sequence[str], splits: Mapping[str, FileSplit], *, whole: bool) -> None:
        """Raises ``UserError`` unless all files are there, no image is in two splits, and their numbers are official.

        Args:
            root: the folder, for messages.
            classes: names of the classes.
            splits: every split by name.
            whole: whether the numbers must be those of the paper.
        """
        seen: dict[str, str] = {}
        for name, split in splits.items():
            for key in split.keys:
                if key in seen:
                    raise UserError(f"data.root={root}: the image {key} is in {seen[key]} and in {name}")
                seen[key] = name
            if len(split.labels) == 0:
                raise UserError(f"data.root={root}: the {name} split of {self.name} has no image")
        if len(classes) < 2:
            raise UserError(f"data.root={root}: {self.name} has {len(classes)} classes here, need at least two")
        if whole:
            found = {"classes": len(classes)} | {f"{name} images": len(split.labels) for name, split in splits.items()}
            wanted = {"classes": self.classes} | {f"{name} images": self.images[name] for name in splits}
            for what, count in found.items():
                if count != wanted[what]:
                    raise UserError(
                        f"data.root={root}: {count:,} {what}, but {self.name} has {wanted[what]:,}; unpack "
                        f"{self.archive} again, or set data.expect_official=false for a part of it"
                    )
        for split in splits.values():
            _ = split.sizes  # looks for every image
            for path in split.companions():
                required(path, root)


def nearest(taxonomy: Taxonomy) -> tuple[str, ...] | None:
    """The nearest coarser level, which a source gives as ``genera``."""
    return next(iter(taxonomy.values()), None)


def required(path: Path, root: Path) -> Path:
    """The path, if it is there."""
    if not path.exists():
        raise UserError(f"data.root={root}: {os.path.relpath(path, root)} is missing; unpack the archive again")
    return path


def rows(path: Path, root: Path, fields: int) -> Iterator[list[str]]:
    """Rows of a table whose fields are separated by blanks; the last one takes the rest of the line."""
    for place, line in enumerate(text(path, root).splitlines(), 1):
        row = line.strip().split(maxsplit=fields - 1)
        if len(row) == fields:
            yield row
        elif row:
            raise UserError(f"{path}, line {place}: expected {fields} fields, got {line.strip()[:60]!r}")


def text(path: Path, root: Path) -> str:
    """Content of a text file, with or without a byte order mark."""
    try:
        return required(path, root).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); unpack the archive again") from error


def number(field: str, path: Path, kind: Callable[[str], Number] = int) -> Number:
    """The number in a table's field.

    Args:
        field: what stands there.
        path: the table, for messages.
        kind: ``int`` or ``float``.
    """
    try:
        return kind(field)
    except ValueError as error:
        raise UserError(f"{path}: {field[:60]!r} is no number; unpack the archive again") from error


def labelled(ids: Sequence[int], known: Mapping[int, int], path: Path) -> NDArray[np.int64]:
    """Labels from 0 for a file's class numbers, which mostly count from 1.

    Args:
        ids: the class number of every image.
        known: label of every class number.
        path: the file, for messages.
    """
    unknown = sorted(set(ids) - known.keys())
    if unknown:
        raise UserError(
            f"{path} names the class {unknown[0]}; the classes are {min(known, default=0)} to {max(known, default=0)}"
        )
    return np.array([known[number] for number in ids], np.int64)


def matlab(path: Path, root: Path, *variables: str) -> list[NDArray[Any]]:
    """Variables of a MATLAB file, each as a one-dimensional array."""
    required(path, root)
    try:
        content = loadmat(path, squeeze_me=True)
        return [np.atleast_1d(content[name]).ravel() for name in variables]
    except Exception as error:  # of newer formats, or whatever scipy raises on damaged bytes
        raise UserError(f"{path} is damaged or no such file of this data set ({error}); unpack it again") from error
