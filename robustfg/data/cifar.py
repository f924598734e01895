"""CIFAR-10 and CIFAR-100, read by torchvision."""

import numpy as np
from torchvision import datasets

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.archives import unpacked_safely
from robustfg.data.arrays import ArraySplit


class Cifar10:
    """Krizhevsky 2009: 50,000 and 10,000 images of 32 x 32, ten classes.

    Args:
        root: folder that holds (or shall hold) torchvision's ``cifar-10-batches-py``.
        download: fetch it there if it is missing.
    """

    reader: type[datasets.CIFAR10] = datasets.CIFAR10

    def __init__(self, *, root: str, download: bool = False) -> None:
        try:
            with unpacked_safely():
                train, test = (self.reader(root, train=train, download=download) for train in (True, False))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.root={root}: {self.reader.base_folder} is missing or damaged; unpack "
                f"{self.reader.filename} ({self.reader.url}) there or set data.download=true"
            ) from error
        self.classes: tuple[str, ...] = tuple(train.classes)
        self.genera: tuple[str, ...] | None = None
        self.taxonomy: Taxonomy = {}
        self.train = ArraySplit(train.data, np.asarray(train.targets, np.int64), "train")
        self.test = ArraySplit(test.data, np.asarray(test.targets, np.int64), "test")
        self.val = None
        self.origin = f"{self.train.identity()} {self.test.identity()}"


class Cifar100(Cifar10):
    """The same with a hundred classes, in ``cifar-100-python``."""

    reader = datasets.CIFAR100
