"""How a text that a stranger chose, such as a class's name or a file's, is shown: one function a medium."""

import unicodedata
from collections.abc import Mapping
from typing import Any

STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that are not shown: control and format characters (escapes, marks of direction), surrogates."""
FORMULA = ("=", "+", "-", "\N{MINUS SIGN}", "@")
"""How a cell begins that a spreadsheet computes, in any width and after whatever it passes over."""


def printable(text: str) -> str:
    """For a terminal, a log or a page: one line, with a question mark for whatever could steer what shows it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("?" if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in STEERING


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


def is_formula(text: str) -> bool:
    """Whether a spreadsheet may compute a cell that holds the text."""
    seen = unicodedata.normalize("NFKC", "".join(" " if _steers(character) else character for character in text))
    return text.startswith(("\t", "\r", "\n")) or seen.lstrip().startswith(FORMULA)


def csv_cell(text: str) -> str:
    """For a CSV cell: ``printable``, and an apostrophe before what a spreadsheet would compute."""
    return f"'{printable(text)}" if is_formula(text) else printable(text)
