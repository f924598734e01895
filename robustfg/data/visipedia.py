"""The tables that CUB-200-2011 and NABirds have in common."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box
from robustfg.data.boxed import KeypointSplit
from robustfg.data.official import number, rows


@dataclass(frozen=True)
class Visipedia:
    """A folder of tables whose rows begin with an image's id; every table must tell of every image."""

    root: Path

    @cached_property
    def paths(self) -> dict[str, str]:
        """Path of every image below ``images`` by id, in the file's order."""
        return {row[0]: row[1] for row in rows(self.root / "images.txt", self.root, 2)}

    @cached_property
    def classes(self) -> dict[int, str]:
        """Name of every class by number."""
        path = self.root / "classes.txt"
        return {number(field, path): name for field, name in rows(path, self.root, 2)}

    @cached_property
    def class_numbers(self) -> list[int]:
        """Class number of every image, as in image_class_labels.txt."""
        path = self.root / "image_class_labels.txt"
        return [number(field, path) for (field,) in self._table(path.name, 1)]

    @cached_property
    def training(self) -> NDArray[np.bool_]:
        """Which images are for training."""
        flags = [flag for (flag,) in self._table("train_test_split.txt", 1)]
        if not {"0", "1"}.issuperset(flags):
            raise UserError(f"{self.root / 'train_test_split.txt'}: the second field must be 0 or 1")
        return np.array([flag == "1" for flag in flags], bool)

    @cached_property
    def boxes(self) -> list[Box]:
        """Bounding box of every image, in pixels of the stored image."""
        path = self.root / "bounding_boxes.txt"
        return [Box(*(number(field, path, float) for field in row)) for row in self._table(path.name, 4)]

    @cached_property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts in the order of their numbers."""
        return tuple(name for _, name in rows(self.root / "parts" / "parts.txt", self.root, 2))

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """``(N, parts, 2)``: x and y in the stored image; NaN where a part is not visible."""
        names, path = self.root / "parts" / "parts.txt", self.root / "parts" / "part_locs.txt"
        place = {image: position for position, image in enumerate(self.paths)}
        column = {number(part, names): position for position, (part, _) in enumerate(rows(names, self.root, 2))}
        points = np.full((len(place), len(column), 2), np.nan, np.float32)
        for image, part, x, y, visible in rows(path, self.root, 5):
            if image not in place or number(part, path) not in column:
                raise UserError(f"{path}: image {image}, part {part} is not in images.txt and parts.txt")
            if visible == "1":
                points[place[image], column[int(part)]] = number(x, path, float), number(y, path, float)
        return points

    def split(self, training: bool, labels: NDArray[np.int64], cropped: bool) -> KeypointSplit:
        """The images for training or for the test.

        Args:
            training: which of the two.
            labels: ``(N,)`` of all images.
            cropped: cut images to their boxes.
        """
        positions, paths, boxes = np.flatnonzero(self.training == training), list(self.paths.values()), self.boxes
        return KeypointSplit(
            self.root,
            [f"images/{paths[position]}" for position in positions],
            labels[positions],
            [boxes[position] for position in positions],
            cropped,
            self.part_names,
            self.points[positions],
        )

    def _table(self, name: str, fields: int) -> list[list[str]]:
        found = {row[0]: row[1:] for row in rows(self.root / name, self.root, fields + 1)}
        missing = self.paths.keys() - found.keys()
        if missing:
            raise UserError(f"{self.root / name} has no row for image {min(missing)} of images.txt")
        return [found[image] for image in self.paths]
