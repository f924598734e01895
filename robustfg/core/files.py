"""Files that are whole under their name, or not there: the one way in which this package writes."""

import contextlib
import io
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from robustfg.core.errors import UserError


@contextmanager
def write_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of ``path`` once the block ends without an error.

    It lies beside ``path``, on the same file system, and is synced before it is renamed: whatever happens, ``path``
    holds the old content or all of the new one. Folders above are created. An error or an interruption leaves nothing;
    a killed process leaves a hidden ``.partial`` file, which the next call for this path removes.

    Raises:
        UserError: where the file system refuses, such as for a full disk or a read-only folder. Errors of the block
            that have another cause pass unchanged.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not target.is_file():
        raise UserError(f"{path} cannot be written: it is a {'folder' if target.is_dir() else 'device or a pipe'}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        beside = target.with_name(f"{_beginning(target)}{os.getpid()}{_PARTIAL}")
        raw = _Remembering(beside, "w")
    except OSError as error:
        raise refusal(path, error) from error
    stream, written = io.BufferedWriter(raw), False
    try:
        yield cast(BinaryIO, stream)
        written = True
        stream.close()
        _sync(beside)
        os.replace(beside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            stream.close()
        with contextlib.suppress(OSError):
            beside.unlink()
        failure = raw.failure or (error if written and isinstance(error, OSError) else None)
        if failure is not None and isinstance(error, Exception):
            raise refusal(path, failure) from error
        raise
    with contextlib.suppress(OSError):  # not every file system knows it of folders
        _sync(target.parent)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file as ``write_atomically`` does; names of files that are no UTF-8 keep their bytes."""
    with write_atomically(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def refusal(path: str | Path, error: OSError) -> UserError:
    """The file system's reason in one line that names what cannot be written."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UserError(f"{path} cannot be written: {error.filename} is no folder")
    return UserError(f"{path} cannot be written: {error.strerror or error}")


class _Remembering(io.FileIO):
    """A file that remembers why it could not be written, since libraries raise other errors instead."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise


_PARTIAL = ".partial"


def _beginning(target: Path) -> str:
    """Of the names beside ``target`` that processes of this machine choose; short, as names have a limit of length."""
    return f".{target.name[:40]}.{platform.node()[:40]}."


def _remove_leftovers(target: Path) -> None:
    for name in os.listdir(target.parent):
        process = name.removeprefix(_beginning(target)).removesuffix(_PARTIAL)
        if name.endswith(_PARTIAL) and process.isdecimal() and not _lives(int(process)):
            with contextlib.suppress(OSError):
                (target.parent / name).unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
