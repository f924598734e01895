"""Splits whose images lie in files, and how such a file is read."""

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from robustfg.core.errors import UserError
from robustfg.core.text import printable

PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins."""
PNG_CHUNKS = (b"PLTE", b"tRNS", b"IDAT")


def read_image(path: Path, *, upright: bool = True) -> NDArray[np.uint8]:
    """An image as RGB, ``(H, W, 3)``. Raises ``UserError`` with the path if it cannot be read.

    Args:
        path: the file.
        upright: turn the picture as its EXIF data say; False where annotations refer to the pixels as stored.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ValueError("it is no regular file")
        _refuse_damaged_png(path)
        # Twice as many pixels as Pillow warns of are an error.
        large = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with large, Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would clip these to white
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
            turned = ImageOps.exif_transpose(image) if upright else image
            if "transparency" in turned.info:  # from a palette to RGB, Pillow warns
                turned = turned.convert("RGBA")
            return np.array(turned.convert("RGB"))
    except Exception as error:  # decoders raise all sorts of things on damaged files
        raise UserError(f"cannot read the image {printable(str(path))} ({error}); replace or remove it") from error


def _refuse_damaged_png(path: Path) -> None:
    """Compares the checksums of a PNG's pixels and colours, which Pillow does not; other usual kinds have none."""
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            return
        end = os.fstat(file.fileno()).st_size
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind not in PNG_CHUNKS or file.tell() + length + 4 > end:  # what ends too early is left to Pillow
                file.seek(length + 4, os.SEEK_CUR)
            elif zlib.crc32(kind + file.read(length)) != int.from_bytes(file.read(4)):
                raise ValueError("a checksum is wrong, so it is damaged")


@dataclass(frozen=True)
class FileSplit:
    """Images in files; satisfies ``Split``."""

    root: Path
    keys: Sequence[str]
    """Paths below the root."""
    labels: NDArray[np.int64] = field(repr=False)
    known_sizes: NDArray[np.int64] | None = field(default=None, repr=False, kw_only=True)
    """Bytes of every file, ``(N,)``, where a listing has told them; -1 for a file that is gone."""

    def image(self, position: int) -> NDArray[np.uint8]:
        """Decodes as RGB, turned as its EXIF data say. Raises ``UserError`` with the path if that fails."""
        return read_image(self.root / self.keys[position])

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of every file, ``(N,)``. Raises ``UserError`` that names the first missing one."""
        if self.known_sizes is not None:
            return self.known_sizes
        try:
            return np.array([(self.root / key).stat().st_size for key in self.keys], np.int64)
        except OSError as error:
            raise UserError(
                f"data.root={self.root}: the image {error.filename} is missing; unpack the archive again"
            ) from error

    def content(self, position: int) -> bytes:
        """A digest of the file's bytes; empty where it cannot be read."""
        try:
            return blake2b((self.root / self.keys[position]).read_bytes(), digest_size=16).digest()
        except OSError:
            return b""

    def companions(self) -> Iterator[Path]:
        """Every file that is read beside the images, such as masks; none by default."""
        return iter(())
