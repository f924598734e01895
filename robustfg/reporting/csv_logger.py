"""metrics.csv: every logged scalar, kept across interruptions."""

import csv
import io
import warnings
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger

from robustfg.core.errors import UserError
from robustfg.core.files import refusal, write_text


class MetricsCsv(Logger):
    """One row per logging step. A continued run goes on after the last row that its checkpoint knows of.

    Args:
        path: the file; existing rows are read and kept, but for what a killed process left incomplete.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = _whole_rows(self.path)
        self.columns: list[str] = []  # of the file as it was last written by us
        self.saved = 0  # rows in it
        self._resuming = bool(self.rows)

    def position(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def rewind(self, position: int) -> None:
        """Forgets the rows from ``position`` on, which are logged again."""
        if len(self.rows) < position:
            warnings.warn(f"{self.path} has lost {position - len(self.rows)} of {position} rows", stacklevel=2)
        self.rows, self.columns, self._resuming = self.rows[:position], [], False

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    def name(self) -> str:
        """Empty like ``version``, so that Lightning puts checkpoints right below ``save_dir``."""
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters stand in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        if self._resuming:
            self.rows = [row for row in self.rows if int(row["step"]) < step]
            self._resuming = False
        self.rows.append({"step": step, **metrics})

    @rank_zero_only
    def save(self) -> None:
        columns = ["step", "epoch", *sorted({key for row in self.rows for key in row} - {"step", "epoch"})]
        if columns == self.columns and self.path.is_file():
            try:
                with self.path.open("a", newline="") as file:
                    csv.DictWriter(file, columns).writerows(self.rows[self.saved :])
            except OSError as error:
                raise refusal(self.path, error) from error
        else:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.path, text.getvalue())
        self.columns, self.saved = columns, len(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            with suppress(UserError) if status == "failed" else nullcontext():  # what failed first is reported
                self.save()


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file up to the first that is incomplete."""
    if not path.is_file():
        return []
    lines = path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows: list[dict[str, Any]] = []
    try:
        for row in csv.DictReader(lines):
            if None in row or None in row.values() or not row.get("step", "").isdecimal():
                break
            rows.append({key: value for key, value in row.items() if value != ""})
    except csv.Error:  # such as a NUL, after a loss of power
        pass
    return rows
