"""Stanford Cars: photographs of 196 makes, models and years, with boxes."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, Taxonomy
from robustfg.data.boxed import CROPPED, BoxedSplit, crops
from robustfg.data.official import Official, labelled, matlab, nearest

CARS = Official(
    name="Stanford Cars",
    folder="stanford_cars",
    archive="cars_train.tgz, cars_test.tgz and car_devkit.tgz",
    classes=196,
    images={"train": 8144, "test": 8041},
)
LABELLED = "cars_test_annos_withlabels.mat"
MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")


class Cars:
    """Stanford Cars (Krause et al. 2013) with its official split; the coarser level is the make.

    The folder holds ``cars_train``, ``cars_test`` and ``devkit`` as unpacked. The devkit's ``cars_test_annos.mat`` has
    no labels: the authors published them later as ``cars_test_annos_withlabels.mat``, which must lie in the folder, as
    torchvision has it, or in ``devkit``. The official address is gone, so nothing is downloaded.

    Args:
        root: that folder, or the one above ``stanford_cars``.
        crop: ``"box"`` cuts all images to the annotated box, for training and test. That is privileged information.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(self, *, root: str | None, crop: str | None = None, expect_official: bool = True) -> None:
        cropped = crops(crop)
        folder = CARS.place(root, "devkit/cars_meta.mat")
        (names,) = matlab(folder / "devkit" / "cars_meta.mat", folder, "class_names")
        self.classes = tuple(map(str, names))
        self.taxonomy: Taxonomy = {"make": tuple(map(_make, self.classes))}
        self.genera = nearest(self.taxonomy)
        self.privileged = CROPPED if cropped else None
        tables = {"train": folder / "devkit" / "cars_train_annos.mat", "test": _test_table(folder)}
        known = {number: number - 1 for number in range(1, len(self.classes) + 1)}

        def split(name: str) -> BoxedSplit:
            (table,) = matlab(tables[name], folder, "annotations")
            numbers = [int(number) for number in _column(table, "class", tables[name])]
            files = [f"cars_{name}/{file}" for file in _column(table, "fname", tables[name])]
            corners = [_column(table, f"bbox_{corner}", tables[name]) for corner in ("x1", "y1", "x2", "y2")]
            boxes = [
                Box(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)  # MATLAB counts from 1 and includes the last pixel
                for x1, y1, x2, y2 in zip(*(corner.astype(float).tolist() for corner in corners), strict=True)
            ]
            return BoxedSplit(folder, files, labelled(numbers, known, tables[name]), boxes, cropped)

        self.train, self.test = split("train"), split("test")
        self.val = None
        CARS.check(folder, self.classes, {"train": self.train, "test": self.test}, whole=expect_official)


def _make(name: str) -> str:
    return next((make for make in MAKES_OF_TWO_WORDS if name.startswith(f"{make} ")), name.split()[0])


def _test_table(folder: Path) -> Path:
    for path in (folder / LABELLED, folder / "devkit" / LABELLED):
        if path.exists():
            return path
    raise UserError(
        f"data.root={folder}: {LABELLED} is neither there nor in devkit; the devkit's own cars_test_annos.mat has no "
        "labels to test against"
    )


def _column(table: NDArray[Any], field: str, path: Path) -> NDArray[Any]:
    if table.dtype.names is None or field not in table.dtype.names:
        raise UserError(f"{path} has no field {field} in its annotations")
    return np.atleast_1d(table[field])
