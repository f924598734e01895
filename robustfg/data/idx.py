"""MNIST and Fashion-MNIST from their IDX files, plain or gzipped."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.archives import unpacked_safely
from robustfg.data.arrays import ArraySplit


class Idx:
    """A data set in MNIST's file format.

    Args:
        root: folder of the four IDX files, or torchvision's root above ``<name>/raw``.
        download: fetch them there with torchvision if they are missing.
    """

    reader: type[datasets.MNIST]
    default_classes: tuple[str, ...]

    def __init__(self, *, root: str, download: bool = False) -> None:
        folder = Path(root).expanduser()
        if download:
            try:
                with unpacked_safely():
                    self.reader(folder, download=True)
            except (RuntimeError, OSError) as error:
                raise UserError(
                    f"data.download=true: could not be fetched ({error}); put the files into {folder}"
                ) from error
        self.classes = self.default_classes
        self.genera = None
        self.taxonomy: Taxonomy = {}
        self.train = self._split(folder, "train")
        self.test = self._split(folder, "t10k")
        self.val = None
        self.origin = f"{self.train.identity()} {self.test.identity()}"

    def _split(self, folder: Path, prefix: str) -> ArraySplit:
        images = read_idx(self._find(folder, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(self._find(folder, f"{prefix}-labels-idx1-ubyte"))
        if len(images) != len(labels):
            raise UserError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels")
        return ArraySplit(images, labels.astype(np.int64), "train" if prefix == "train" else "test")

    def _find(self, folder: Path, name: str) -> Path:
        for candidate in (folder, folder / "raw", folder / self.reader.__name__ / "raw"):
            for path in (candidate / name, candidate / f"{name}.gz"):
                if path.is_file():
                    return path
        raise UserError(
            f"data.root={folder}: {name}[.gz] is neither there nor in {self.reader.__name__}/raw below; put the four "
            "IDX files there or set data.download=true"
        )


class Mnist(Idx):
    """Handwritten digits (LeCun et al. 1998), 60,000 and 10,000 grey images of 28 x 28."""

    reader = datasets.MNIST
    default_classes = tuple("0123456789")


class FashionMnist(Idx):
    """Clothes (Xiao et al. 2017), 60,000 and 10,000 grey images of 28 x 28."""

    reader = datasets.FashionMNIST
    default_classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file. Raises ``UserError`` if the file is damaged."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, dimensions = content[2], content[3]
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        if content[:2] != b"\0\0" or kind != 0x08:
            raise ValueError("not an IDX file of unsigned bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (ValueError, IndexError, EOFError, OSError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
