"""What some data sets know beyond labels: their files, where parts and object lie, the coarser groups of classes."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robustfg.data.source import Source

Taxonomy = Mapping[str, tuple[str, ...]]
"""The coarser class of every class, level by level, the nearest first: ``{"genus": (...), "family": (...)}``."""


class Point(NamedTuple):
    """A place in an image, in pixels; the centre of the pixel at row r, column c is (c, r)."""

    x: float
    y: float


class Box(NamedTuple):
    """A rectangle in pixels: columns left to left + width, rows top to top + height."""

    left: float
    top: float
    width: float
    height: float


@runtime_checkable
class WithFiles(Protocol):
    """A split whose images are files."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of every file, ``(N,)``."""


@runtime_checkable
class WithParts(Protocol):
    """A split that knows the shape of parts."""

    def parts(self, position: int) -> dict[str, NDArray[np.bool_]]:
        """Masks ``(H, W)`` of the visible parts by name."""


@runtime_checkable
class WithKeypoints(Protocol):
    """A split that knows where parts are."""

    def keypoints(self, position: int) -> dict[str, Point]:
        """Places of the visible parts by name, in the image that ``image`` returns."""


@runtime_checkable
class WithMask(Protocol):
    """A split that knows the object's shape."""

    def mask(self, position: int) -> NDArray[np.bool_]:
        """The object, ``(H, W)`` as the image that ``image`` returns."""


@runtime_checkable
class WithBox(Protocol):
    """A split that knows the object's place."""

    def box(self, position: int) -> Box:
        """The object's bounding box, in the image that ``image`` returns."""


@runtime_checkable
class WithDecidingParts(Protocol):
    """A source that knows which parts tell a class from the others of its genus."""

    deciding_parts: tuple[tuple[str, ...], ...]


@runtime_checkable
class WithTaxonomy(Protocol):
    """A source with coarser levels."""

    taxonomy: Taxonomy


@runtime_checkable
class WithPrivilege(Protocol):
    """A source that may give the classifier more than an image at test time."""

    privileged: str | None


def taxonomy_of(source: Source) -> Taxonomy:
    """The coarser levels of a source's classes; empty where none is known."""
    if isinstance(source, WithTaxonomy):
        return source.taxonomy
    return {} if source.genera is None else {"genus": source.genera}


@runtime_checkable
class WithOrigin(Protocol):
    """A source whose options decide what an image with a given key shows."""

    origin: str


def origin_of(source: Source) -> str | None:
    """What tells a source from another one with the same keys; None where keys say it all."""
    return source.origin if isinstance(source, WithOrigin) else None


def privileged_of(source: Source) -> str | None:
    """What the classifier is told beyond the image at test time, as a clause; None for nothing."""
    return source.privileged if isinstance(source, WithPrivilege) else None
