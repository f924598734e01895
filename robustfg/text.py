"""How a text that a stranger chose, such as a class's name or a file's, is shown: one function a medium."""

import unicodedata

STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that are not shown: control and format characters (escapes, marks of direction), surrogates."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet computes."""


def printable(text: str) -> str:
    """For a terminal or a log: one line, with a question mark for whatever could steer the terminal."""
    if text.isprintable() and text.isascii():
        return text
    return "".join("?" if unicodedata.category(character) in STEERING else character for character in text)


def drawable(text: str) -> str:
    """For a figure: as ``printable``, and dollar signs do not begin a formula."""
    return printable(text).replace("$", r"\$")


def csv_cell(text: str) -> str:
    """For a CSV cell: a text that a spreadsheet would compute is quoted by an apostrophe."""
    return f"'{text}" if text.startswith(FORMULA) else text
