"""How a text that a stranger chose, such as a class's name or a file's, is shown: one function a medium."""

import unicodedata
from collections.abc import Mapping
from typing import Any

STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that are not shown: control and format characters (escapes, marks of direction), surrogates."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet computes."""


def printable(text: str) -> str:
    """For a terminal, a log or a page: one line, with a question mark for whatever could steer what shows it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("?" if unicodedata.category(character) in STEERING else character for character in text)


def shown(value: Any) -> Any:
    """Plain containers with ``printable`` texts and keys, lines of their own kept."""
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, Mapping):
        return {shown(key): shown(part) for key, part in value.items()}
    return [shown(part) for part in value] if isinstance(value, list | tuple) else value


def drawable(text: str) -> str:
    """For a figure: dollar signs begin no formula there, and an underscore hides nothing from the legend."""
    drawn = "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")
    return f" {drawn}" if drawn.startswith("_") else drawn


def csv_cell(text: str) -> str:
    """For a CSV cell: an apostrophe before what a spreadsheet would compute."""
    return f"'{text}" if text.startswith(FORMULA) else text
