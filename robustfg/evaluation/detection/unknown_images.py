"""The unknown images' part in an evaluation with detectors: read clean, then pushed to be accepted."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
from rich.progress import track

from robustfg.attacks import Attack, Threat
from robustfg.data.datamodule import DataModule
from robustfg.data.splits import fingerprint
from robustfg.detectors import Watched
from robustfg.evaluation.detection.attackers import push
from robustfg.evaluation.detection.calibration import Calibration, there
from robustfg.evaluation.detection.options import Detection
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.records import write_table
from robustfg.evaluation.unknown import Known, UnknownScores, measure_unknown, unknown_block

UNKNOWN_ROWS = "unknown.parquet"
"""File of a row for every unknown image, beside ``records.parquet``."""


class UnknownImages:
    """The sets of unknown images that an evaluation was given.

    Args:
        detection: the options, which hold the sets.
        calibration: the detectors' scores of normal images.
        threat: by how much an unknown image may be changed.
        data: brings images to size and gives every process its share.
        trainer: has the device.

    Raises:
        UserError: if a set has fewer images than there are processes.
    """

    def __init__(
        self, detection: Detection, calibration: Calibration, threat: Threat, data: DataModule, trainer: pl.Trainer
    ) -> None:
        self.detection, self.calibration, self.threat, self.trainer = detection, calibration, threat, trainer
        self.batches = {name: data.unknown_dataloader(unknown.images) for name, unknown in detection.unknown.items()}
        self.tables: list[pa.Table] = []

    def told(self, watched: Watched, table: pa.Table) -> dict[str, Any]:
        """Reads and attacks all images; every process must call it.

        Args:
            watched: the classifier and its detectors, in eval mode.
            table: all rows of the test samples, whose clean ones are the known images.

        Returns:
            The block ``unknown``: for every set what ``unknown_block`` tells, ``ids_sha256`` of its images and the
            ``attacks`` by detector. Nothing where there are no sets.
        """
        readings = {name: Readings(table, name) for name in watched.detectors}
        known = {name: Known(reading.clean, reading.right) for name, reading in readings.items()}
        thresholds = {name: self.calibration.thresholds(name, self.detection.levels) for name in known}
        attacks = {name: self._push(name, thresholds[name]) for name in known} if self.detection.white_box else {}
        shown = {"attacks": {name: dict(attack.shown()) for name, attack in attacks.items()}}
        told = {}
        for name, unknown in self.detection.unknown.items():
            found = self._measured(name, watched, attacks)
            self.tables.append(found.table(name))
            keys, labels = unknown.images.keys, unknown.images.labels
            ids = {"ids_sha256": fingerprint(np.arange(len(labels)), keys, labels)}
            told[name] = ids | shown | unknown_block(found, known, thresholds)
        return {"unknown": told} if told else {}

    def _measured(self, name: str, watched: Watched, attacks: dict[str, Attack]) -> UnknownScores:
        loader = self.batches[name]
        hidden = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None
        batches = track(
            there(self.trainer, loader), f"unknown images: {name}, batches", total=len(loader), disable=hidden
        )
        return measure_unknown(watched, batches, attacks)

    def _push(self, name: str, thresholds: dict[float, float]) -> Attack:
        tau, lowest = thresholds[self.detection.fpr], min(thresholds.values())
        return push(self.detection, name, self.threat, self.calibration, tau=tau, lowest=lowest)

    def write(self, folder: Path) -> None:
        """Writes the rows of all images that were read."""
        if self.tables:
            write_table(pa.concat_tables(self.tables), folder / UNKNOWN_ROWS)
