"""metrics.csv: every logged scalar, kept across interruptions."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import Logger


class MetricsCsv(Logger):
    """One row per logging step. A resumed run replaces the rows of steps that it repeats.

    Args:
        path: the file; existing rows are read and kept.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = []  # of the file as it was last written by us
        self.saved = 0  # rows in it
        self._resuming = self.path.is_file()
        if self._resuming:
            with self.path.open(newline="") as file:
                self.rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]

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
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerows(self.rows[self.saved :])
        else:
            beside = self.path.with_suffix(".tmp")
            with beside.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)
            beside.replace(self.path)
        self.columns, self.saved = columns, len(self.rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self.save()
