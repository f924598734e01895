"""What lies below a folder: image files with their sizes, and what is left out."""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustfg.core.errors import UserError
from robustfg.core.files import write_atomically

Image.init()
SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in Image.OPEN and kind not in {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # known to Pillow, not read
)
SHOWN = ".jpg, .png, .webp, .gif, .tif, .bmp and what else Pillow opens"
"""The suffixes, for messages."""
IGNORED = {"__macosx", "__pycache__", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "thumbs.db",
           "ehthumbs.db", "desktop.ini", "system volume information"}  # fmt: skip
"""What systems leave in folders, in any case, beside names that begin with a dot."""

KEPT_FROM = 10_000
"""Images from which a listing is kept: fewer are listed faster than a stored listing is worth."""
SETTLED = 2_000_000_000
"""Nanoseconds after which a folder's time of change is believed: a later change within one tick has the same time."""
LOOKED = 60_000_000_000
"""Nanoseconds for which a look at every file of a kept listing serves other processes too."""
KEPT_IN: ContextVar[Path | None] = ContextVar("KEPT_IN", default=None)
"""The folder where listings of large trees are kept; None for nowhere."""


class Paths(Sequence[str]):
    """Paths of files, in one block of bytes instead of a string each.

    Args:
        folders: the folders, relative, with ``/``; ``""`` for the root.
        folder: ``(N,)`` which of them every file lies in.
        names: all file names, one after the other.
        starts: ``(N,)`` where a name begins.
        lengths: ``(N,)`` its bytes.
    """

    def __init__(
        self,
        folders: Sequence[str],
        folder: NDArray[np.int32],
        names: bytes,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int32],
    ) -> None:
        self.folders, self.folder, self.names, self.starts, self.lengths = folders, folder, names, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> "Paths": ...
    def __getitem__(self, position: int | slice) -> "str | Paths":
        if isinstance(position, slice):
            return self.at(np.arange(len(self))[position])
        start, folder = int(self.starts[position]), self.folders[self.folder[position]]
        name = os.fsdecode(self.names[start : start + int(self.lengths[position])])
        return f"{folder}/{name}" if folder else name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def at(self, positions: NDArray[np.int64]) -> "Paths":
        """Some of the paths, in the order of their positions."""
        return Paths(self.folders, self.folder[positions], self.names, self.starts[positions], self.lengths[positions])


@dataclass(frozen=True)
class Listing:
    """The images below a folder, sorted by the parts of their paths. Links are followed, but in no circle."""

    folders: tuple[str, ...]
    """All folders, relative to the root, which is ``""``; every one comes after that in which it lies."""
    changed: NDArray[np.int64] = field(repr=False)
    """Time of the last change of every folder, in nanoseconds."""
    paths: Paths = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    """Bytes of every image, ``(N,)``."""
    written: NDArray[np.int64] = field(repr=False)
    """Time of the last change of every image, in nanoseconds, ``(N,)``."""
    inodes: NDArray[np.uint64] = field(repr=False)
    """``(N,)``."""
    left_out: Mapping[str, int]
    """How many entries are no images, by what they are."""


def listed(root: Path) -> Listing:
    """What lies below a folder; of a large tree that has not changed it is read from where it was kept.

    Processes of one machine take turns, so that one of them lists and the others read. A tree has changed where the
    time of a folder has, or time, size or inode of an image, which is said where it was written over in its place. Not
    noticed is what keeps all three, what is written within ``LOOKED`` of the last look at the files, and, in trees that
    are too small to be kept, other pixels in a file of the same size.

    Raises:
        UserError: if a folder cannot be read.
    """
    kept_in = KEPT_IN.get()
    with _taking_turns(root):
        kept = None if kept_in is None else kept_in / f"{_name_of(root)}.npz"
        if kept is not None and (found := _read(kept, root)) is not None:
            return found
        started = time.time_ns()
        listing = _list(root)
        if kept is not None and len(listing.paths) >= KEPT_FROM:
            with contextlib.suppress(UserError):  # a disk that is full or read-only: list again next time
                _write(kept, listing, started)
        return listing


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's images."""
    return name.startswith(".") or name.casefold() in IGNORED


def _list(root: Path) -> Listing:
    folders, changed, left_out = [""], [], Counter[str]()
    names, folder, lengths, sizes, written, inodes = bytearray(), [], [], [], [], []

    def visit(path: str, number: int, above: tuple[tuple[int, int], ...]) -> None:
        try:
            told = os.stat(path)
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{path} cannot be listed: {error.strerror}") from error
        changed.append(told.st_mtime_ns)
        here = (told.st_dev, told.st_ino)
        if here in above:
            left_out["links that lead in a circle"] += 1
            return
        for entry in entries:
            if is_hidden(entry.name):
                left_out["hidden"] += 1
                continue
            try:
                if entry.is_dir():
                    folders.append(f"{folders[number]}/{entry.name}".lstrip("/"))
                    visit(entry.path, len(folders) - 1, (*above, here))
                    continue
                told = entry.stat()
            except OSError:
                left_out["links that lead nowhere"] += 1
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if not stat.S_ISREG(told.st_mode):
                left_out["neither files nor folders"] += 1
            elif suffix not in SUFFIXES:
                left_out[suffix or "without a suffix"] += 1
            else:
                name = os.fsencode(entry.name)
                names.extend(name)
                folder.append(number)
                lengths.append(len(name))
                sizes.append(told.st_size)
                written.append(told.st_mtime_ns)
                inodes.append(told.st_ino)

    visit(str(root), 0, ())
    long = np.asarray(lengths, np.int32)
    starts = np.cumsum(long, dtype=np.int64) - long
    paths = Paths(folders, np.asarray(folder, np.int32), bytes(names), starts, long)
    return Listing(
        tuple(folders), np.asarray(changed, np.int64), paths, np.asarray(sizes, np.int64),
        np.asarray(written, np.int64), np.asarray(inodes, np.uint64), dict(left_out),
    )  # fmt: skip


@contextlib.contextmanager
def _taking_turns(root: Path) -> Iterator[None]:
    """Holds a lock on the folder itself, where its file system has locks."""
    try:
        descriptor = os.open(root, os.O_RDONLY)
    except OSError:  # listing tells it
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _name_of(root: Path) -> str:
    """A name for what is kept of a root: another for other suffixes or other names that are left out."""
    about = json.dumps([os.path.realpath(root), sorted(SUFFIXES), sorted(IGNORED)])
    return hashlib.sha256(about.encode()).hexdigest()[:24]


def _write(kept: Path, listing: Listing, started: int) -> None:
    paths = listing.paths
    with write_atomically(kept) as file:
        np.savez(
            file, folders=np.frombuffer("\0".join(listing.folders).encode("utf-8", "surrogateescape"), np.uint8),
            changed=listing.changed, folder=paths.folder, names=np.frombuffer(paths.names, np.uint8),
            lengths=paths.lengths, sizes=listing.sizes, written=listing.written, inodes=listing.inodes,
            left_out=np.array(json.dumps(listing.left_out)), started=np.array(started),
        )  # fmt: skip


def _as_they_were(listing: Listing, root: Path) -> bool:
    """Looks at every image. Warns of those that were written over."""
    paths = listing.paths
    now = np.empty((len(paths), 3), np.uint64)
    order = np.argsort(paths.folder, kind="stable")
    for number, part in enumerate(np.split(order, np.cumsum(np.bincount(paths.folder))[:-1])):
        descriptor = os.open(os.path.join(root, paths.folders[number]), os.O_RDONLY)
        try:
            for place in part.tolist():
                start = int(paths.starts[place])
                told = os.stat(paths.names[start : start + int(paths.lengths[place])], dir_fd=descriptor)
                now[place] = told.st_size, told.st_mtime_ns, told.st_ino
        finally:
            os.close(descriptor)
    then = np.stack([listing.sizes.astype(np.uint64), listing.written.astype(np.uint64), listing.inodes], 1)
    over = np.flatnonzero((now[:, :2] != then[:, :2]).any(1))
    if len(over):
        warnings.warn(
            f"{root}: {len(over)} image{'s were' if len(over) > 1 else ' was'} written over since an earlier run "
            f"({paths[int(over[0])]!a}{', …' if len(over) > 1 else ''}), which saw other pixels",
            stacklevel=2,
        )
    return np.array_equal(now, then)


def _read(kept: Path, root: Path) -> Listing | None:
    """The listing that is kept, if every folder and image is as it was."""
    try:
        age = time.time_ns() - kept.stat().st_mtime_ns
        with np.load(kept, allow_pickle=False) as content:
            folders = content["folders"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            changed, started, lengths = content["changed"], int(content["started"]), content["lengths"]
            now = [os.stat(os.path.join(root, folder)).st_mtime_ns for folder in folders]
            if not np.array_equal(changed, now) or max(now) > started - SETTLED:
                return None
            starts = np.cumsum(lengths, dtype=np.int64) - lengths
            paths = Paths(folders, content["folder"], content["names"].tobytes(), starts, lengths)
            stamps = content["sizes"], content["written"], content["inodes"]
            listing = Listing(tuple(folders), changed, paths, *stamps, json.loads(str(content["left_out"])))
        if not 0 <= age < LOOKED:
            if not _as_they_were(listing, root):
                return None
            os.utime(kept)
        return listing
    except Exception:  # missing, damaged, or a folder is gone: all mean listing again
        return None
