"""Rows as a table, JSON lines or CSV, written while they come."""

import csv
import errno
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from robustfg.core.errors import UserError
from robustfg.core.text import csv_cell, is_formula, printable

Cell = str | float | bool | None
PARTIAL = ".partial"
FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE, errno.EFBIG, errno.EACCES}
"""What can happen to a file while it is written."""
WIDTH = 160  # characters of a table that is not shown on a terminal


class Writer(ABC):
    """Writes rows that share their columns; a cell that a row lacks is empty.

    Args:
        stream: where the text goes.
        columns: in order; among them ``error``.
    """

    def __init__(self, stream: TextIO, columns: Sequence[str]) -> None:
        self.stream, self.columns = stream, columns
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Writes what comes before the first row."""

    @abstractmethod
    def put(self, cells: Mapping[str, Cell]) -> None:
        """Writes one row."""

    def __call__(self, cells: Mapping[str, Cell]) -> None:
        """Writes one row, at once visible to whoever reads."""
        self.put({column: cells.get(column) for column in self.columns})
        self.stream.flush()


class JsonLines(Writer):
    """An object a line, in printable ASCII, so that every file name survives."""

    def begin(self) -> None:
        """Nothing: there is no header."""

    def put(self, cells: Mapping[str, Cell]) -> None:
        line = json.dumps(cells, allow_nan=False)
        self.stream.write(line.replace("\x7f", r"\u007f") + "\n")


class Csv(Writer):
    """A header and a line a row (RFC 4180, but for the line's end), with nothing that a spreadsheet computes.

    As ``ls`` does, it writes the path of a file as it is into a file or a pipe, so that the file can be opened, and
    without what could steer it on a terminal. All other texts are ``csv_cell``.
    """

    def begin(self) -> None:
        self.rows = csv.writer(self.stream, lineterminator="\n")
        self.rows.writerow(map(csv_cell, self.columns))

    def put(self, cells: Mapping[str, Cell]) -> None:
        self.rows.writerow([self._cell(column, cell) for column, cell in cells.items()])

    def _cell(self, column: str, cell: Cell) -> Cell:
        if isinstance(cell, bool):
            return str(cell).lower()
        if not isinstance(cell, str):
            return cell
        if column != "image":
            return csv_cell(cell)
        path = f"./{cell}" if is_formula(cell) else cell
        return printable(path) if self.stream.isatty() else path


class Table(Writer):
    """Columns of a fixed width, so that a row can be shown before the next is known."""

    def begin(self) -> None:
        self.shown = [column for column in self.columns if column != "error"]
        self.console = Console(file=self.stream, width=None if self.stream.isatty() else WIDTH, highlight=False)
        self._line([Text(printable(heading(column)), style="bold") for column in self.shown])

    def put(self, cells: Mapping[str, Cell]) -> None:
        if cells["error"] is None:
            self._line([_text(column, cells[column]) for column in self.shown])
        else:
            self.console.print(Text(printable(f"{cells['image']}: {cells['error']}"), style="red"))

    def _line(self, texts: list[Text]) -> None:
        table = RichTable(box=None, expand=True, show_header=False, pad_edge=False)
        for column in self.shown:
            if column == "image":
                table.add_column(ratio=1, min_width=20, overflow="fold")
            elif heading(column) == "class":
                table.add_column(width=16, overflow="fold")
            else:
                table.add_column(width=max(len(heading(column)), 8), justify="right")
        table.add_row(*texts)
        self.console.print(table)


def heading(column: str) -> str:
    """What stands above a column: the detector's name over its score, and no ranks."""
    kind, _, name = column.partition("/")
    return name if kind == "score" else kind.partition("_")[0]


def _text(column: str, cell: Cell) -> Text:
    if isinstance(cell, bool):
        return Text("yes") if cell else Text("no", style="bold red")
    if isinstance(cell, float):
        return Text(f"{100 * cell:.1f} %" if column.startswith("probability") else f"{cell:.4g}")
    return Text("" if cell is None else printable(cell))


FORMATS: Mapping[str, type[Writer]] = {"table": Table, "json": JsonLines, "csv": Csv}


def writer_of(name: str | None, to: str | None) -> type[Writer]:
    """The writer of a format; None: a table on a terminal, CSV into a file named so, JSON lines elsewhere.

    Raises:
        UserError: for another format.
    """
    if name is None and to is None:
        return Table if sys.stdout.isatty() else JsonLines
    if name is None:
        return Csv if str(to).lower().endswith(".csv") else JsonLines
    if name not in FORMATS:
        raise UserError(f"format must be {', '.join(FORMATS)}, got {name}")
    return FORMATS[name]


@contextmanager
def opened(to: str | None) -> Iterator[TextIO]:
    """The stream for the rows: stdout, or a file that appears under its name once it is whole.

    Until then, and where the command ends early, the rows so far lie in a file beside it, ``<name>.partial``. A pipe or
    a device is written to directly.

    Raises:
        UserError: where the file cannot be written, or could not be any more.
    """
    if to is None:
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # names need not be valid text
        yield sys.stdout
        return
    path = Path(to).expanduser()
    if path.is_dir():
        raise UserError(f"to={to} is a folder; name a file, such as to={path / 'rows.csv'}")
    whole = path.is_file() or not path.exists()
    beside = path.with_name(path.name + PARTIAL) if whole else path
    try:
        stream = beside.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise UserError(f"to={to}: {error.strerror}") from error
    try:
        try:
            yield stream
        finally:
            stream.close()
        if whole:
            beside.replace(path)
    except BaseException as error:
        if whole:
            _keep_whole_rows(beside)
        if isinstance(error, OSError) and error.errno in FAILURES:
            raise UserError(f"to={to}: {error.strerror}{kept(to)}") from error
        raise


def _keep_whole_rows(path: Path) -> None:
    """Takes half a row off the end of a file, and removes the file where it holds no row."""
    with suppress(OSError):
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if content.count(b"\n", 0, end) <= (1 if content.startswith(b"image,") else 0):
            path.unlink()
        elif end < len(content):
            os.truncate(path, end)


def kept(to: str | None) -> str:
    """Where rows lie that were written before a command ended early, to be added to a message; empty for nowhere."""
    beside = Path(to).expanduser().with_name(Path(to).name + PARTIAL) if to else None
    return f"; the rows so far are kept in {beside}" if beside is not None and beside.exists() else ""
