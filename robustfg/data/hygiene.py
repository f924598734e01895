"""Whether images that are tested on are ones that were trained on, under whatever name."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from robustfg.data.annotations import WithFiles
from robustfg.data.source import Split
from robustfg.data.splits import Positions

MOST = 5_000
"""Test images that are compared; of more, as many spread evenly."""
Images = tuple[Split, Positions]


@runtime_checkable
class WithContent(Protocol):
    """A split that tells what an image holds without decoding it."""

    def content(self, position: int) -> bytes:
        """A digest: two images with the same one are the same; empty where it cannot be read."""


@dataclass(frozen=True)
class Overlap:
    """What images of a split and those of the training have in common."""

    count: int
    """Images that were trained on."""
    n: int
    """Images looked at."""
    example: str
    """The name of the first one, and that in the training; empty where there is none."""
    compared: int
    """Images of the training that were at hand."""


def overlap(tested: Images, trained: Iterable[Images]) -> Overlap:
    """Compares by name, and by content where the data tell it; files of other sizes are not read."""
    split, positions = tested
    looked_at = positions[np.unique(np.linspace(0, len(positions) - 1, min(len(positions), MOST)).astype(int))]
    names, compared = split.keys, 0
    found: dict[int, str] = {}
    for other, places in trained:
        compared += len(places)
        if other is split:
            found |= {p: names[p] for p in np.intersect1d(looked_at, places).tolist()}
        same = _by_content(split, looked_at, other, places)
        found |= {p: same[p] for p in same.keys() - found.keys()}
    first = min(found, default=None)
    example = "" if first is None else f"{names[first]} is {found[first]}"
    return Overlap(len(found), len(looked_at), example, compared)


def _by_content(split: Split, positions: Positions, other: Split, places: Positions) -> dict[int, str]:
    """Names in the other split of images that it holds too, by position."""
    if not (isinstance(split, WithContent) and isinstance(other, WithContent)):
        return {}
    if isinstance(split, WithFiles) and isinstance(other, WithFiles):
        mine, theirs = split.sizes[positions], other.sizes[places]
        shared = np.intersect1d(mine, theirs)
        positions, places = positions[np.isin(mine, shared)], places[np.isin(theirs, shared)]
    if not len(positions):
        return {}
    known = {other.content(place): place for place in places.tolist()}
    keys = other.keys
    digests = {position: split.content(position) for position in positions.tolist()}
    return {position: keys[known[digest]] for position, digest in digests.items() if digest and digest in known}
