"""Whether images that are tested on are ones that were trained on, under whatever name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from robustfg.data.annotations import WithFiles
from robustfg.data.source import Split
from robustfg.data.splits import Positions

MOST = 5_000
"""Test images whose contents are compared; of more, as many spread evenly. Names are compared of all."""
Images = tuple[Split, Positions]


@runtime_checkable
class WithContent(Protocol):
    """A split that returns a digest of an image without decoding it."""

    def content(self, position: int) -> bytes:
        """A digest: two images with the same one are the same; empty where it cannot be read."""


@dataclass(frozen=True)
class Trained:
    """Images that a model was trained or chosen on."""

    images: Images | None = None
    """Those at hand."""
    names: Sequence[str] = ()
    """Of others."""
    lacking: str = ""
    """Reason why some images cannot be compared by name or content; empty where all can."""
    elsewhere: bool = False
    """They are of other data, whose names may be alike by chance."""


@dataclass(frozen=True)
class Overlap:
    """What images of a split and those of the training have in common; the names of all of them are compared."""

    n: int
    """Images of the split."""
    count: int
    """Images of ``same`` or ``contents``."""
    same: int
    """Images that have the name of one that was trained on, in the same split of the same data."""
    named: int
    """Images that have such a name elsewhere, and are not known to hold the same."""
    contents: int
    """Images that hold what one of the training holds, whatever their names, of those looked at."""
    looked_at: int
    """Images whose contents are compared; 0 where the data do not tell them."""
    example: str
    """The name of the first one, and that in the training; empty where there is none."""


def overlap(tested: Images, trained: Iterable[Trained]) -> Overlap:
    """Compares all names, and contents where the data tell them; files of other sizes are not read."""
    split, positions = tested
    looked_at = positions[np.unique(np.linspace(0, len(positions) - 1, min(len(positions), MOST)).astype(int))]
    names, by_content = split.keys, False
    here = {names[p]: p for p in positions.tolist()}
    same: dict[int, str] = {}
    named: dict[int, str] = {}
    held: dict[int, str] = {}
    for part in trained:
        (named if part.elsewhere else same).update({here[key]: key for key in part.names if key in here})
        if part.images is not None:
            other, places = part.images
            alike = (other.keys[place] for place in places.tolist())
            (same if other is split else named).update({here[key]: key for key in alike if key in here})
            by_content = by_content or (isinstance(split, WithContent) and isinstance(other, WithContent))
            held |= {p: key for p, key in _by_content(split, looked_at, other, places).items() if p not in held}
    surely = held | same
    first = min(surely, default=min(named, default=None))
    return Overlap(
        n=len(positions), count=len(surely), same=len(same), named=len(named.keys() - surely.keys()),
        contents=len(held), looked_at=len(looked_at) if by_content else 0,
        example="" if first is None else f"{names[first]} is {(named | surely)[first]}",
    )  # fmt: skip


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
    known, keys = {other.content(place): place for place in places.tolist()}, other.keys
    digests = {position: split.content(position) for position in positions.tolist()}
    return {position: keys[known[digest]] for position, digest in digests.items() if digest and digest in known}
