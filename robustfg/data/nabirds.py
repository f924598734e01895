"""NABirds: photographs of 555 kinds of North American birds, with boxes, part locations and a hierarchy."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.boxed import CROPPED, crops
from robustfg.data.official import Official, labelled, nearest, number, rows
from robustfg.data.visipedia import Visipedia

NABIRDS = Official(
    name="NABirds",
    folder="nabirds",
    archive="nabirds.tar.gz (https://dl.allaboutbirds.org/nabirds, after its terms are accepted)",
    classes=555,
    images={"train": 23929, "test": 24633},
)


class NABirds:
    """NABirds (Van Horn et al. 2015) with its official split.

    Classes are the nodes of the hierarchy that have images, in the order of their numbers. Coarser levels are
    ``"parent"``, the node above (a species for a plumage of it, a group for a species), and ``"group"``, the node right
    below the root, such as hawks and eagles. Where a class lies right below the root both are the class itself.

    Args:
        root: folder that holds ``nabirds``, or that folder itself.
        crop: ``"box"`` cuts all images to the annotated box, for training and test. That is privileged information.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(self, *, root: str | None, crop: str | None = None, expect_official: bool = True) -> None:
        cropped = crops(crop)
        folder = NABIRDS.place(root, "hierarchy.txt")
        tables = Visipedia(folder)
        numbers = sorted(set(tables.class_numbers))
        path = folder / "classes.txt"
        if unnamed := set(numbers) - tables.classes.keys():
            raise UserError(f"{path} does not name the class {min(unnamed)} of image_class_labels.txt")
        known = {number: label for label, number in enumerate(numbers)}
        labels = labelled(tables.class_numbers, known, folder / "image_class_labels.txt")
        _refuse_mismatched_folders(tables, folder / "image_class_labels.txt")
        self.classes = tuple(tables.classes[number] for number in numbers)
        self.taxonomy: Taxonomy = _taxonomy(numbers, tables.classes, folder)
        self.genera = nearest(self.taxonomy)
        self.privileged = CROPPED if cropped else None
        self.train, self.test = (tables.split(training, labels, cropped) for training in (True, False))
        self.val = None
        NABIRDS.check(folder, self.classes, {"train": self.train, "test": self.test}, whole=expect_official)


def _refuse_mismatched_folders(tables: Visipedia, path: Path) -> None:
    """Images lie in folders named by their class number, which tells labels that are off by one."""
    for image, known in zip(tables.paths.values(), tables.class_numbers, strict=True):
        if image.split("/")[0] != f"{known:04d}":
            raise UserError(f"{path} gives {image} the class {known}, which its folder denies")


def _taxonomy(numbers: list[int], names: Mapping[int, str], folder: Path) -> Taxonomy:
    path = folder / "hierarchy.txt"
    above = {number(child, path): number(parent, path) for child, parent in rows(path, folder, 2)}

    def ancestors(node: int) -> Iterator[int]:
        """Nodes above, the nearest first, without the root."""
        seen = {node}
        while node in above:
            node = above[node]
            if node in seen or node not in names:
                raise UserError(f"{path}: the node {node} is above itself or has no name in classes.txt")
            seen.add(node)
            if node in above:
                yield node

    lines = [list(ancestors(node)) or [node] for node in numbers]
    return {
        "parent": tuple(names[line[0]] for line in lines),
        "group": tuple(names[line[-1]] for line in lines),
    }
