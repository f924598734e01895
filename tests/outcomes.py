"""What many commands leave, each run in an empty folder."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import warm


class Outcome(NamedTuple):
    """How a command ended, and the paths of files and folders that it left below the folder it was run in."""

    status: int
    out: str
    err: str
    left: list[str]


def outcomes(commands):
    """Runs ``(command, *words)`` one after another."""
    return [_outcome(command, *map(str, words)) for command, *words in commands]


def _outcome(command, *words):
    with tempfile.TemporaryDirectory() as place:
        done = warm.run(f"robustfg.{command}", *words, cwd=place)
        left = sorted(str(path.relative_to(place)) for path in Path(place).rglob("*"))
        return Outcome(done.returncode, done.stdout, done.stderr, left)
