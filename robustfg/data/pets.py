"""Oxford-IIIT Pet: photographs of 37 breeds of cats and dogs, with trimaps."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import OxfordIIITPet

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.boxed import StoredSplit
from robustfg.data.files import read_image
from robustfg.data.official import Official, labelled, nearest, number, rows

PETS = Official(
    name="Oxford-IIIT Pet",
    folder="oxford-iiit-pet",
    archive="images.tar.gz and annotations.tar.gz (https://www.robots.ox.ac.uk/~vgg/data/pets)",
    classes=37,
    images={"train": 3680, "test": 3669},
    downloads=True,
)
SPECIES = {"1": "cat", "2": "dog"}
FOREGROUND = 1  # in trimaps; 2 is the background, 3 the border, which the authors call not classified


class Pets:
    """Oxford-IIIT Pet (Parkhi et al. 2012): official trainval and test splits; the coarser level is cat or dog.

    Args:
        root: folder that holds (or shall hold) ``oxford-iiit-pet``, or that folder itself, with ``images`` and
            ``annotations`` as unpacked.
        download: fetch it with torchvision, which checks the MD5 of both archives, if it is missing.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(self, *, root: str | None, download: bool = False, expect_official: bool = True) -> None:
        if download:
            PETS.fetch(root, lambda above: OxfordIIITPet(above, download=True))
        folder = PETS.place(root, "annotations/trainval.txt")
        tables = {"train": folder / "annotations" / "trainval.txt", "test": folder / "annotations" / "test.txt"}
        lines = {name: list(rows(path, folder, 4)) for name, path in tables.items()}  # image, class, species, breed
        breeds: dict[int, tuple[str, str]] = {}
        for name, path in tables.items():
            for image, field, species, _ in lines[name]:
                told = (image.rpartition("_")[0].replace("_", " "), SPECIES.get(species, ""))
                if not told[1] or breeds.setdefault(number(field, path), told) != told:
                    raise UserError(f"{path} gives {image} the class {field} and the species {species}")
        known = {breed: label for label, breed in enumerate(sorted(breeds))}
        self.classes = tuple(breeds[breed][0] for breed in known)
        self.taxonomy: Taxonomy = {"species": tuple(breeds[breed][1] for breed in known)}
        self.genera = nearest(self.taxonomy)

        def split(name: str) -> StoredSplit:
            keys = [f"images/{image}.jpg" for image, *_ in lines[name]]
            labels = labelled([int(field) for _, field, *_ in lines[name]], known, tables[name])
            trimaps = (folder / "annotations" / "trimaps").is_dir()
            return (TrimapSplit if trimaps else StoredSplit)(folder, keys, labels)

        self.train, self.test = split("train"), split("test")
        self.val = None
        PETS.check(folder, self.classes, {"train": self.train, "test": self.test}, whole=expect_official)


@dataclass(frozen=True)
class TrimapSplit(StoredSplit):
    """Images with trimaps; satisfies ``WithMask``."""

    def mask(self, position: int) -> NDArray[np.bool_]:
        """The animal without its border, ``(H, W)``."""
        trimap = read_image(self._trimap(self.keys[position]), upright=False)
        return np.equal(trimap[..., 0], FOREGROUND)

    def companions(self) -> Iterator[Path]:
        return map(self._trimap, self.keys)

    def _trimap(self, key: str) -> Path:
        return self.root / "annotations" / "trimaps" / Path(key).with_suffix(".png").name
