"""How downloaded archives are unpacked: nothing outside their folder, and whole or not at all."""

import bz2
import errno
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torchvision.datasets import utils

SIZE = 1 << 16
"""Bytes that are read at once."""
COMPRESSED: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # with gzip's header and checksum
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
"""By suffix, what decompresses one stream and checks it."""
SHORT = {".tgz": ".tar.gz", ".tbz": ".tar.bz2", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}

ZIP_END = 2**16 + 22
"""The most bytes that the record at a zip's end takes."""
ZIP_UTF8 = 0x800
"""Flag of a name in UTF-8."""


@contextmanager
def unpacked_safely() -> Iterator[None]:
    """Lets torchvision's readers unpack by ``unpack`` while they download."""
    stock = utils.extract_archive
    utils.extract_archive = unpack
    try:
        yield
    finally:
        utils.extract_archive = stock


def unpack(from_path: Any, to_path: Any = None, remove_finished: bool = False) -> str:
    """Unpacks a tar, zip or compressed file beside, and moves what came out of it into the folder.

    Every checksum that the format has is compared: of the whole in .gz, .bz2 and .xz, of every file in a zip, of every
    file's name and size in a plain tar, whose contents have none.

    Args:
        from_path: the archive. It is removed where it is damaged, so that it is fetched again.
        to_path: the folder; None for the archive's.
        remove_finished: remove the archive afterwards.

    Raises:
        RuntimeError: if it is damaged, or holds a member that lies outside, a link that leads there, or a device.
    """
    archive = Path(from_path)
    if archive.suffix not in {".tar", ".zip", *COMPRESSED, *SHORT}:
        raise RuntimeError(f"{archive} is no .tar, .zip, {', '.join([*COMPRESSED, *SHORT])}")
    folder = archive.parent if to_path is None else Path(to_path)
    folder.mkdir(parents=True, exist_ok=True)
    with archive.open("rb") as file, tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as beside:
        try:
            _unpack(archive.name, file, Path(beside))
        except Exception as error:  # decoders raise all sorts of things on damaged files
            if isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, errno.EINVAL):
                raise  # the machine's; a damaged archive has its readers seek to invalid places
            archive.unlink(missing_ok=True)
            raise RuntimeError(f"{archive} is damaged and has been removed: {error}") from error
        for entry in os.listdir(beside):
            _move(Path(beside, entry), folder / entry)
    if remove_finished:
        archive.unlink()
    return str(folder)


def _unpack(name: str, file: BinaryIO, folder: Path) -> None:
    """Unpacks an open archive into an empty folder. The format follows from the suffix of the name."""
    stem, suffix = os.path.splitext(name)
    stem, suffix = os.path.splitext(stem + SHORT.get(suffix, suffix))
    content: Any = Decompressed(file, COMPRESSED[suffix]) if suffix in COMPRESSED else file
    if suffix == ".zip":
        _unzip(file, folder)
    elif suffix == ".tar" or (suffix in COMPRESSED and stem.endswith(".tar")):
        with tarfile.open(fileobj=content, mode="r|", tarinfo=StrictTarInfo) as archive:
            archive.extractall(folder, filter="data")
        while content.read(SIZE):  # the checksum comes last
            pass
    else:
        with (folder / stem).open("wb") as target:
            shutil.copyfileobj(content, target)


def _unzip(file: BinaryIO, folder: Path) -> None:
    """Unpacks a zip whose list of files agrees with what it says of itself, which ``zipfile`` does not ask."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        file.seek(max(file.seek(0, os.SEEK_END) - ZIP_END, 0))
        tail = file.read()
        (count,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
        if count not in (len(members) % 2**16, 2**16 - 1):  # 2**16 - 1 in large zips, which store the count elsewhere
            raise zipfile.BadZipFile(f"it lists {len(members)} files instead of {count}")
        for member in members:
            file.seek(member.header_offset + 6)
            flags = int.from_bytes(file.read(2), "little")
            if not member.orig_filename.isascii() and (flags ^ member.flag_bits) & ZIP_UTF8:
                raise zipfile.BadZipFile(f"the name of {member.filename} can be read in two ways")
        archive.extractall(folder, members)  # by name, of two files of one name one would be unpacked twice


class Decompressed:
    """The content of a compressed file, which must be whole to its last byte, a chunk a ``read``.

    Args:
        file: one stream or several in a row, with zeros between and after them at most.
        begin: makes what decompresses one stream.
    """

    def __init__(self, file: BinaryIO, begin: Callable[[], Any]) -> None:
        self._chunks = _chunks(file, begin)

    def read(self, size: int) -> bytes:
        """The next chunk, of any size, empty at the end. Raises what the decompressor raises, or ``EOFError``."""
        return next(self._chunks, b"")


def _chunks(file: BinaryIO, begin: Callable[[], Any]) -> Iterator[bytes]:
    decompressor = begin()
    while compressed := file.read(SIZE):
        while decompressor.eof or compressed:
            if decompressor.eof:
                compressed = compressed.lstrip(b"\0")
                if not compressed:
                    break
                decompressor = begin()
            if content := decompressor.decompress(compressed):
                yield content
            compressed = decompressor.unused_data
    if not decompressor.eof:
        raise EOFError("it ends too early")


class StrictTarInfo(tarfile.TarInfo):
    """A tar's header. ``tarfile`` takes a damaged or missing one, but for the first, for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "StrictTarInfo":
        """Reads a block; only one of zeros ends the archive. Raises ``tarfile.ReadError``."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"{error} in the middle" if buf else "it ends too early") from error


def _move(source: Path, target: Path) -> None:
    """Moves a file or folder to where there may already be a part of it."""
    if source.is_dir() and not source.is_symlink() and target.is_dir():
        for entry in os.listdir(source):
            _move(source / entry, target / entry)
    else:
        os.replace(source, target)
