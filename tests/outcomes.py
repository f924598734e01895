"""Many commands, each in a process of its own that is forked from one which has imported everything."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a command ended, and the paths of files and folders that it left below the folder it was run in."""

    status: int
    out: str
    err: str
    left: list[str]


def outcomes(commands):
    """Runs ``(command, *words)`` one after another, each in an empty folder."""
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps([list(map(str, words)) for words in commands]),
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Outcome(*each) for each in json.loads(done.stdout.splitlines()[-1])]


def _forked(command, words):
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as streams:
        files = [Path(streams, name) for name in ("out", "err")]
        pid = os.fork()
        if pid == 0:
            _become(command, words, place, files)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = sorted(str(path.relative_to(place)) for path in Path(place).rglob("*"))
        return Outcome(status, *(path.read_text() for path in files), left)


def _become(command, words, place, files):
    status = 1
    try:
        os.chdir(place)
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.argv = [f"robustfg.{command}", *words]
        importlib.import_module(f"robustfg.{command}").main()
        status = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        else:
            status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    from robustfg import assemble, evaluate, predict, prediction, rehearsal, run, splitting, train  # noqa: F401

    given = json.loads(sys.stdin.read())
    print(json.dumps([_forked(command, words) for command, *words in given]))
