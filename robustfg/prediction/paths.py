"""Paths of image files, found while they are asked for."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from robustfg.data.listing import SUFFIXES, is_hidden


def images_in(names: Iterable[str | Path], lines: Iterable[bytes] = ()) -> Iterator[str]:
    """Paths in the order of the names; memory holds the entries of one folder and its parents at a time.

    A folder stands for the images below it, sorted by path; hidden entries are left out and links to folders are not
    followed. A folder that cannot be read or holds no image is yielded itself, so that reading it tells what is wrong.

    Args:
        names: files and folders; ``-`` stands for ``lines``.
        lines: one file or folder each, such as ``sys.stdin.buffer``.
    """
    for name in names:
        if name == "-":
            stripped = (os.fsdecode(line.rstrip(b"\n")) for line in lines)
            yield from (path for given in stripped if given for path in _found(given))
        else:
            yield from _found(os.path.expanduser(name))


def _found(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    images = _below(path)
    yield next(images, path)
    yield from images


def _below(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            shown = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    for entry in shown:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield entry.path
