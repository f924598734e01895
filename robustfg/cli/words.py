"""Words of the command line, as they were typed: Hydra reads ``2026_11_30`` as a number and stops at a second ``=``."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from robustfg.cli.config import EvaluateRoot, PredictRoot, TrainRoot, refuse_run_name

OVERRIDE = re.compile(r"([+]{0,2}[\w@./-]+)=(.*)", re.DOTALL)

STRUCTURED = ("'", '"', "[", "{")
"""Beginnings of values that are quoted, lists or options by name."""

NAMES = {"root", "path", "weights", "name", "surrogate"}
"""Last parts of options that hold a text, mostly a path, wherever they are."""


def _texts() -> set[str]:
    """Options of the root schemas that hold a text."""
    hints: dict[str, Any] = {}
    for schema in (TrainRoot, EvaluateRoot, PredictRoot):
        known = get_type_hints(schema)
        hints |= {entry.name: known[entry.name] for entry in fields(schema)}
    return {name for name, hint in hints.items() if hint in (str, str | None)}


TEXTS = _texts()


def key_of(word: str) -> str:
    """The option that a word sets; empty where it sets none."""
    found = OVERRIDE.fullmatch(word)
    return found[1].lstrip("+") if found else ""


def as_typed(words: Sequence[str]) -> list[str]:
    """The words with quotes of Hydra's around values that it could not read, or would read as something else.

    Raises:
        UserError: for a run name that is no name of a folder.
    """
    sweep = any(word in ("-m", "--multirun") for word in words)
    return [word if word.startswith("-") else _as_typed(word, sweep) for word in words]


def _as_typed(word: str, sweep: bool) -> str:
    found = OVERRIDE.fullmatch(word)
    if found is None or found[2].startswith(STRUCTURED) or "${" in found[2] or re.fullmatch(r"\w+\(.*\)", found[2]):
        return word
    option, value = found[1], found[2]
    parts = value.split(",") if sweep else [value]
    if option.lstrip("+") == "run_name":
        for part in parts:
            refuse_run_name(part)
    return f"{option}={','.join(_value(option, part) for part in parts)}"


def _value(option: str, value: str) -> str:
    name = option.lstrip("+")
    if name in TEXTS or name.rpartition(".")[2] in NAMES:
        return value if value == "null" else _quoted(value)
    try:
        OverridesParser.create().parse_override(f"{option}={value}")
    except OverrideParseException:
        return _quoted(value)
    return value


def _quoted(value: str) -> str:
    """Between single quotes, as Hydra reads them: backslashes count before quotes only."""
    inside = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), value)
    return f"'{inside}'"
