"""Stanford Dogs: photographs of 120 breeds from ImageNet, with boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, Taxonomy
from robustfg.data.boxed import CROPPED, BoxedSplit, StoredSplit, crops
from robustfg.data.official import Official, labelled, matlab, required

DOGS = Official(
    name="Stanford Dogs",
    folder="stanford_dogs",
    archive="images.tar, annotation.tar and lists.tar (http://vision.stanford.edu/aditya86/ImageNetDogs)",
    classes=120,
    images={"train": 12000, "test": 8580},
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Dogs:
    """Stanford Dogs (Khosla et al. 2011) with its official split; the archives hold no coarser level.

    The folder holds ``Images``, ``Annotation`` and the lists as unpacked. Images are ImageNet's: a backbone pretrained
    there has seen them, test images included.

    Args:
        root: that folder, or the one above ``stanford_dogs``.
        crop: ``"box"`` cuts all images to the smallest box around all annotated dogs, for training and test. That is
            privileged information.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(self, *, root: str | None, crop: str | None = None, expect_official: bool = True) -> None:
        cropped = crops(crop)
        folder = DOGS.place(root, "train_list.mat")
        boxed = (folder / "Annotation").is_dir()
        if cropped:
            required(folder / "Annotation", folder)
        files, numbers = {}, {}
        for name in ("train", "test"):
            found, labels = matlab(folder / f"{name}_list.mat", folder, "file_list", "labels")
            files[name], numbers[name] = list(map(str, found)), [int(number) for number in labels]
        breeds = _breeds(files, numbers, folder)
        self.classes = tuple(breeds[number] for number in sorted(breeds))
        self.genera = None
        self.taxonomy: Taxonomy = {}
        self.privileged = CROPPED if cropped else None
        known = {number: label for label, number in enumerate(sorted(breeds))}

        def split(name: str) -> StoredSplit:
            labels = labelled(numbers[name], known, folder / f"{name}_list.mat")
            keys = [f"Images/{file}" for file in files[name]]
            return DogSplit(folder, keys, labels, (), cropped) if boxed else StoredSplit(folder, keys, labels)

        self.train, self.test = split("train"), split("test")
        self.val = None
        DOGS.check(folder, self.classes, {"train": self.train, "test": self.test}, whole=expect_official)


@dataclass(frozen=True)
class DogSplit(BoxedSplit):
    """Images whose boxes lie in files of their own, read when they are asked for."""

    def stored_box(self, position: int) -> Box:
        """The smallest box around all annotated dogs, in the stored image."""
        path = self._annotation(self.keys[position])
        try:
            found = ElementTree.parse(path).iter("bndbox")
            corners = np.array([[float(box.findtext(side, "")) for side in CORNERS] for box in found]).reshape(-1, 4)
            (left, top), (right, bottom) = corners[:, :2].min(0).tolist(), corners[:, 2:].max(0).tolist()
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"{path} is no annotation with boxes ({error}); unpack annotation.tar again") from error
        return Box(left, top, right - left, bottom - top)

    def companions(self) -> Iterator[Path]:
        return map(self._annotation, self.keys)

    def _annotation(self, key: str) -> Path:
        return self.root / Path("Annotation", *Path(key).parts[1:]).with_suffix("")


def _breeds(files: dict[str, list[str]], numbers: dict[str, list[int]], folder: Path) -> dict[int, str]:
    """Breed by class number, from the folders that images lie in: ``n02085620-Chihuahua``."""
    breeds: dict[int, str] = {}
    for name, paths in files.items():
        for path, number in zip(paths, numbers[name], strict=True):
            breed = path.split("/")[0].partition("-")[2].replace("_", " ")
            if breeds.setdefault(number, breed) != breed:
                raise UserError(f"{folder / f'{name}_list.mat'} gives {path} the class {number}, {breeds[number]}")
    return breeds
