"""Names of options, and which of them was meant by one that does not exist."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from robustfg.core.errors import UserError

LIKE = 0.65
"""How alike two names must be, from 0 to 1, for one to be taken for the other."""

BESIDE = 0.2
"""How much less alike than the likeliest a further name may be."""


class NoOptionError(UserError):
    """An option that does not exist.

    Args:
        option: its whole name, such as ``loss.margn``.
        known: whole names of options that do exist.
    """

    def __init__(self, option: str, known: Iterable[str] = ()) -> None:
        self.option = option
        names = {*known} - {option}
        hint = ""
        if meant := closest(option, names):
            hint = f"; did you mean {_either(meant)}?"
        elif beside := sorted(name for name in names if _parent(name) == _parent(option)):
            hint = f"; there are {', '.join(beside)}"
        super().__init__(f"no option {option}{hint}")

    def among(self, known: Iterable[str]) -> "NoOptionError":
        """The same mistake, seen where more options are known."""
        return NoOptionError(self.option, known)


def names_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Whole names of all options of a config in plain containers, parts that hold others included."""
    for key, value in config.items():
        if not str(key).startswith("_"):
            name = f"{prefix}{key}"
            yield name
            if isinstance(value, Mapping):
                yield from names_of(value, f"{name}.")


def closest(option: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that look like an option's, the likeliest first.

    Where its last part exists elsewhere, only such names; otherwise those alike as a whole or in the last part.
    """
    names = sorted(name for name in known if not f"{name}.".startswith(f"{option}."))
    if same := [name for name in names if _last(name) == _last(option)]:
        return sorted(same, key=lambda name: -alike(option, name))[:most]
    scores = {name: max(alike(option, name), alike(_last(option), _last(name))) for name in names}
    least = max(LIKE, max(scores.values(), default=0.0) - BESIDE)
    likely = [name for name in names if scores[name] >= least]
    return sorted(likely, key=lambda name: (-scores[name], -alike(option, name)))[:most]


def alike(one: str, other: str) -> float:
    """How alike two names are, from 0 to 1."""
    return difflib.SequenceMatcher(None, one, other).ratio()


def _either(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
