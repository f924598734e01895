"""CUB-200-2011: photographs of 200 bird species with boxes, part locations and segmentations."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.utils import download_and_extract_archive

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.boxed import CROPPED, KeypointSplit, crops
from robustfg.data.files import read_image
from robustfg.data.official import Official, labelled, nearest, text
from robustfg.data.visipedia import Visipedia

CUB = Official(
    name="CUB-200-2011",
    folder="CUB_200_2011",
    archive="CUB_200_2011.tgz (https://data.caltech.edu/records/65de6-vp158)",
    classes=200,
    images={"train": 5994, "test": 5794},
    downloads=True,
)
ARCHIVES = {  # by what they unpack to: url, and the MD5 that CaltechDATA shows
    "CUB_200_2011": (
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        "97eceeb196236b17998738112f37df78",
    ),
    "segmentations": (
        "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz",
        "4d47ba1228eae64f2fa547c47bc65255",
    ),
}
MAJORITY = 128
"""Grey level from which a pixel is the bird: segmentations hold the share of annotators who said so, times 255."""


class Cub:
    """Caltech-UCSD Birds 200-2011 (Wah et al. 2011) with its official split.

    The archive knows no taxonomy. Where ``taxonomy.csv`` lies beside ``classes.txt``, with the columns ``class`` (as in
    classes.txt), ``genus`` and perhaps ``family``, it is used. Otherwise the only coarser level is ``"group"``: the
    last word of the common name, such as Sparrow or Warbler. That is no genus: one group can span several genera and
    even families, and one genus several groups.

    Images are read as stored, without regard to EXIF data: boxes and parts were marked in that frame.

    Args:
        root: folder that holds (or shall hold) ``CUB_200_2011``, or that folder itself. Segmentations are used where
            ``segmentations`` lies in it or beside it.
        crop: ``"box"`` cuts all images to the annotated box, for training and test. That is privileged information.
        download: fetch images and segmentations if they are missing.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(
        self, *, root: str | None, crop: str | None = None, download: bool = False, expect_official: bool = True
    ) -> None:
        cropped = crops(crop)
        if download:
            CUB.fetch(root, _download)
        folder = CUB.place(root, "images.txt")
        tables = Visipedia(folder)
        numbers = list(tables.classes)
        path = folder / "image_class_labels.txt"
        labels = labelled(tables.class_numbers, {number: label for label, number in enumerate(numbers)}, path)
        _refuse_mismatched_folders(tables, path)
        self.classes = tuple(_common_name(name) for name in tables.classes.values())
        self.taxonomy = _taxonomy(folder / "taxonomy.csv", tuple(tables.classes.values()))
        self.genera = nearest(self.taxonomy)
        self.privileged = CROPPED if cropped else None
        masks = next((f for f in (folder / "segmentations", folder.parent / "segmentations") if f.is_dir()), None)
        self.train, self.test = (
            _with_masks(tables.split(training, labels, cropped), masks) for training in (True, False)
        )
        self.val = None
        CUB.check(folder, self.classes, {"train": self.train, "test": self.test}, whole=expect_official)


@dataclass(frozen=True)
class SegmentedSplit(KeypointSplit):
    """Images with box, parts and segmentation; satisfies ``WithMask`` too."""

    masks: Path

    def mask(self, position: int) -> NDArray[np.bool_]:
        """The bird, ``(H, W)``, where most annotators saw it, in the image that ``image`` returns."""
        votes = read_image(self._segmentation(self.keys[position]), upright=False)[..., 0]
        return self.framed(votes >= MAJORITY, position)

    def companions(self) -> Iterator[Path]:
        return map(self._segmentation, self.keys)

    def _segmentation(self, key: str) -> Path:
        return self.masks / Path(key).relative_to("images").with_suffix(".png")


def _with_masks(split: KeypointSplit, masks: Path | None) -> KeypointSplit:
    if masks is None:
        return split
    return SegmentedSplit(**{field.name: getattr(split, field.name) for field in fields(split)}, masks=masks)


def _download(above: Path) -> None:
    for name, (url, md5) in ARCHIVES.items():
        if not ((above / name).exists() or (above / CUB.folder / name).exists()):
            download_and_extract_archive(url, str(above), md5=md5)


def _refuse_mismatched_folders(tables: Visipedia, path: Path) -> None:
    """Images lie in folders named like their class, which tells labels that are off by one."""
    for image, number in zip(tables.paths.values(), tables.class_numbers, strict=True):
        if image.split("/")[0] != tables.classes[number]:
            raise UserError(
                f"{path} gives {image} the class {number} ({tables.classes[number]}), which its folder denies"
            )


def _common_name(name: str) -> str:
    """``001.Black_footed_Albatross`` as ``Black footed Albatross``."""
    return name.split(".", 1)[-1].replace("_", " ")


def _taxonomy(path: Path, names: Sequence[str]) -> Taxonomy:
    if not path.exists():
        return {"group": tuple(_common_name(name).split()[-1] for name in names)}
    lines = {row.get("class", ""): row for row in csv.DictReader(text(path, path.parent).splitlines())}
    levels = ["genus", "family"] if any(row.get("family") for row in lines.values()) else ["genus"]
    taxonomy: dict[str, tuple[str, ...]] = {}
    for level in levels:
        known = {name: lines[name].get(level) if name in lines else None for name in names}
        if missing := [name for name, value in known.items() if not value]:
            raise UserError(f"{path} has no {level} for the class {missing[0]}; its columns are class,genus,family")
        taxonomy[level] = tuple(str(value) for value in known.values())
    return taxonomy
