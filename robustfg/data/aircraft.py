"""FGVC-Aircraft: photographs of 100 aircraft variants of 70 families and 30 manufacturers, with boxes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import FGVCAircraft

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, Taxonomy
from robustfg.data.boxed import CROPPED, BoxedSplit, crops
from robustfg.data.official import Official, nearest, number, rows, text

LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
COUNTS = {"variant": 100, "family": 70, "manufacturer": 30}
BANNER = 20
"""Rows at the bottom that name the photographer; the authors ask to remove them."""


class Aircraft:
    """FGVC-Aircraft (Maji et al. 2013), release 2013b.

    Args:
        root: folder that holds (or shall hold) ``fgvc-aircraft-2013b``, or that folder itself.
        level: what a class is: ``variant``, ``family`` or ``manufacturer``. Coarser levels are the taxonomy.
        official_val: train on the official train split and validate on the official val split, 3,334 and 3,333 images;
            otherwise train on both together, and validation is carved from them.
        crop: ``"box"`` cuts all images to the annotated box, for training and test. That is privileged information.
        download: fetch the archive with torchvision if it is missing; torchvision knows no checksum of it.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(
        self,
        *,
        root: str | None,
        level: str = "variant",
        official_val: bool = False,
        crop: str | None = None,
        download: bool = False,
        expect_official: bool = True,
    ) -> None:
        if level not in LEVELS:
            raise UserError(f"data.source.level must be variant, family or manufacturer, got {level}")
        official = Official(
            name="FGVC-Aircraft",
            folder="fgvc-aircraft-2013b",
            archive="fgvc-aircraft-2013b.tar.gz (https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft)",
            classes=COUNTS[level],
            images={"train": 3334 if official_val else 6667, "val": 3333, "test": 3333},
            downloads=True,
        )
        cropped = crops(crop)
        if download:
            official.fetch(root, lambda above: FGVCAircraft(above, download=True))
        folder = official.place(root, "data/variants.txt")
        self.classes = tuple(text(folder / "data" / LEVELS[level], folder).splitlines())
        self.privileged = CROPPED if cropped else None
        boxes = {}
        table = folder / "data" / "images_box.txt"
        for name, *corners in rows(table, folder, 5):
            x1, y1, x2, y2 = (number(corner, table, float) for corner in corners)
            boxes[name] = Box(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)  # (1, 1) is the top left, the last included

        def split(part: str) -> AircraftSplit:
            path = folder / "data" / f"images_{level}_{part}.txt"
            images = _labels(folder, level, part)
            if unboxed := images.keys() - boxes.keys():
                raise UserError(f"{table} has no row for the image {min(unboxed)}")
            files = [f"data/images/{name}.jpg" for name in images]
            known = {name: label for label, name in enumerate(self.classes)}
            if unknown := set(images.values()) - known.keys():
                raise UserError(f"{path} names the class {min(unknown)}, which {LEVELS[level]} does not")
            labels = np.array([known[name] for name in images.values()], np.int64)
            return AircraftSplit(folder, files, labels, [boxes[name] for name in images], cropped)

        self.train, self.test = split("train" if official_val else "trainval"), split("test")
        self.val = split("val") if official_val else None
        given = {"train": self.train, "test": self.test} | ({"val": self.val} if self.val else {})
        official.check(folder, self.classes, given, whole=expect_official)
        self.taxonomy = _taxonomy(folder, level, self.classes)
        self.genera = nearest(self.taxonomy)


@dataclass(frozen=True)
class AircraftSplit(BoxedSplit):
    """Images without the banner at their bottom."""

    def framed(self, pixels: NDArray, position: int) -> NDArray:
        return super().framed(pixels[:-BANNER], position)


def _labels(folder: Path, level: str, part: str) -> dict[str, str]:
    """Name of the class by image."""
    return {row[0]: row[1] for row in rows(folder / "data" / f"images_{level}_{part}.txt", folder, 2)}


def _taxonomy(folder: Path, level: str, classes: tuple[str, ...]) -> Taxonomy:
    """The coarser levels, which the tables give image by image."""
    finer = _labels(folder, level, "trainval")
    taxonomy = {}
    for coarser in list(LEVELS)[list(LEVELS).index(level) + 1 :]:
        images = _labels(folder, coarser, "trainval")
        group = {name: images[image] for image, name in finer.items() if image in images}
        if missing := set(classes) - group.keys():
            raise UserError(f"data.root={folder}: no image of trainval tells the {coarser} of {min(missing)}")
        taxonomy[coarser] = tuple(group[name] for name in classes)
    return taxonomy
