"""How downloaded archives are unpacked: nothing outside their folder, and whole or not at all."""

import gzip
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchvision.datasets import utils

DAMAGED = (EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What is raised on an archive that is cut off or holds what it must not."""


@contextmanager
def unpacked_safely() -> Iterator[None]:
    """Lets torchvision's readers unpack by ``unpack`` while they download."""
    stock = utils.extract_archive
    utils.extract_archive = unpack
    try:
        yield
    finally:
        utils.extract_archive = stock


_stock = utils.extract_archive


def unpack(from_path: Any, to_path: Any = None, remove_finished: bool = False) -> str:
    """Unpacks a tar, zip or compressed file beside, and moves what came out of it into the folder.

    Args:
        from_path: the archive. It is removed where it is damaged, so that it is fetched again.
        to_path: the folder; None for the archive's.
        remove_finished: remove the archive afterwards.

    Raises:
        RuntimeError: if it is damaged, or holds a member that lies outside, a link that leads there, or a device.
    """
    archive = Path(from_path)
    folder = archive.parent if to_path is None else Path(to_path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as beside:
        try:
            with _filtered():
                _stock(str(archive), beside)
        except DAMAGED as error:
            archive.unlink(missing_ok=True)
            raise RuntimeError(f"{archive} is damaged and has been removed: {error}") from error
        for entry in os.listdir(beside):
            _move(Path(beside, entry), folder / entry)
    if remove_finished:
        archive.unlink()
    return str(folder)


@contextmanager
def _filtered() -> Iterator[None]:
    """Makes ``tarfile`` refuse what leads out of the folder, which before Python 3.14 it does on request only."""
    before = getattr(tarfile.TarFile, "extraction_filter", None)
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _move(source: Path, target: Path) -> None:
    """Moves a file or folder to where there may already be a part of it."""
    if source.is_dir() and not source.is_symlink() and target.is_dir():
        for entry in os.listdir(source):
            _move(source / entry, target / entry)
    else:
        os.replace(source, target)
