"""Data sets in iNaturalist's form of COCO's JSON: images, annotations and categories with their taxonomy."""

import json
from pathlib import Path
from typing import Any

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.files import FileSplit
from robustfg.data.official import Official, labelled, nearest

INATURALIST = Official(
    name="the iNaturalist-style data",
    folder="inaturalist",
    archive="images and annotations (https://github.com/visipedia/inat_comp)",
    classes=0,
    images={},
)
RANKS = ("genus", "family", "order", "class", "phylum", "kingdom", "supercategory")
"""Keys of a category that are taken for levels, the nearest first."""


class INaturalist:
    """Images listed in JSON files, such as the iNaturalist competitions of 2017 to 2021.

    ``train`` is trained on. The competitions publish no test labels, so ``val`` is what is tested on and validation is
    carved from train, as everywhere. Classes are the categories that have training images, by their numbers. There is
    no one official size, so none is checked. Every file is looked for at the start: some seconds for 500,000 images.

    Args:
        root: folder below which the images' ``file_name`` lie.
        train: JSON file, below root, of the training images.
        val: JSON file, below root, of the images to test on.
    """

    def __init__(self, *, root: str | None, train: str = "train.json", val: str = "val.json") -> None:
        folder = INATURALIST.place(root, train)
        contents = {"train": _read(folder, train), "val": _read(folder, val)}
        categories = {category["id"]: category for category in contents["train"]["categories"]}
        used = sorted({annotation["category_id"] for annotation in contents["train"]["annotations"]})
        known = {number: label for label, number in enumerate(used)}
        if unnamed := set(used) - categories.keys():
            raise UserError(f"{folder / train} has no category {min(unnamed)}, which an annotation names")
        self.classes = tuple(str(categories[number]["name"]) for number in used)
        self.taxonomy: Taxonomy = {
            rank: tuple(str(categories[number][rank]) for number in used)
            for rank in RANKS
            if all(rank in categories[number] for number in used)
        }
        self.genera = nearest(self.taxonomy)
        self.privileged = None

        def split(name: str, file: str) -> FileSplit:
            files, numbers = _listed(contents[name], folder / file)
            return FileSplit(folder, files, labelled(numbers, known, folder / file))

        self.train, self.test = split("train", train), split("val", val)
        self.val = None
        INATURALIST.check(folder, self.classes, {"train": self.train, "test": self.test}, whole=False)


def _read(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = [(image["id"], image["file_name"]) for image in content["images"]]
        _ = [(annotation["image_id"], annotation["category_id"]) for annotation in content["annotations"]]
        _ = [(category["id"], category["name"]) for category in content["categories"]]
    except OSError as error:
        raise UserError(f"data.root={folder}: {name} is missing; unpack the annotations there") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of images, annotations and categories ({error!r})") from error
    assert isinstance(content, dict)
    return content


def _listed(content: dict[str, list[dict[str, Any]]], path: Path) -> tuple[list[str], list[int]]:
    """File and category of every image, in the file's order."""
    category: dict[Any, int] = {}
    for annotation in content["annotations"]:
        image, number = annotation["image_id"], annotation["category_id"]
        if category.setdefault(image, number) != number:
            raise UserError(f"{path}: image {image} has the categories {category[image]} and {number}; need one")
    missing = [image["id"] for image in content["images"] if image["id"] not in category]
    if missing:
        raise UserError(f"{path}: image {missing[0]} has no annotation")
    return (
        [str(image["file_name"]) for image in content["images"]],
        [category[image["id"]] for image in content["images"]],
    )
