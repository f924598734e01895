"""Colours and markers that tell classes apart in a plot."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.colors import to_hex

SHAPES = "os^DvP*X<>"
COLORS = 8
"""Colours that are told apart at a glance: those of tab10 without grey and its second blue."""


class Mark(NamedTuple):
    """How the points of a class look."""

    color: str
    shape: str


def marks(classes: int, groups: Sequence[str] | None = None) -> list[Mark]:
    """A mark for every class: the group by colour and the class within it by shape, else colours first.

    Any two differ as long as groups are at most 8 and hold at most 10 classes each; beyond, colours come from a scale.

    Args:
        classes: how many.
        groups: the group of every class, such as its genus, where one is known.
    """
    if groups is None:
        return [Mark(_color(k % COLORS, COLORS), SHAPES[k // COLORS % len(SHAPES)]) for k in range(classes)]
    names = list(dict.fromkeys(groups))
    return [
        Mark(_color(names.index(group), len(names)), SHAPES[groups[:k].count(group) % len(SHAPES)])
        for k, group in enumerate(groups)
    ]


def _color(position: int, count: int) -> str:
    if count > COLORS:
        return to_hex(colormaps["turbo"](position / (count - 1)))
    return to_hex(colormaps["tab10"]((0, 1, 2, 3, 4, 5, 6, 8)[position]))
