"""The unknown images' part in an evaluation with detectors: read clean, then pushed to be accepted."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
from rich.progress import track
from torch.utils.data import DataLoader

from robustfg.attacks import Attack, Threat
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule, described
from robustfg.detectors import Watched
from robustfg.evaluation.detection.attackers import push
from robustfg.evaluation.detection.calibration import Calibration, there
from robustfg.evaluation.detection.options import Detection
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.fingerprint import fingerprints
from robustfg.evaluation.gather import gathered
from robustfg.evaluation.records import RecordStore, write_table
from robustfg.evaluation.unknown import Known, UnknownScores, unknown_block
from robustfg.evaluation.unknown_record import attacked_rows, clean_rows, measure_unknown, unknown_scores

UNKNOWN_ROWS = "unknown.parquet"
"""File of a row for every unknown image, beside ``records.parquet``."""


class UnknownImages:
    """The sets of unknown images that an evaluation was given.

    Args:
        detection: the options, which hold the sets.
        calibration: the detectors' scores of normal images.
        threat: by how much an unknown image may be changed.
        data: brings images to size and gives every process its share.
        trainer: has the device and the processes.

    Raises:
        UserError: if a set has fewer images than there are processes.
    """

    def __init__(
        self, detection: Detection, calibration: Calibration, threat: Threat, data: DataModule, trainer: pl.Trainer
    ) -> None:
        self.detection, self.calibration, self.trainer = detection, calibration, trainer
        self.batches = {name: data.unknown_dataloader(unknown.images) for name, unknown in detection.unknown.items()}
        self.thresholds = {name: calibration.thresholds(name, detection.levels) for name in detection.detectors}
        pushed = self.thresholds if detection.white_box else {}
        self.attacks = {name: self._push(name, threat, thresholds) for name, thresholds in pushed.items()}
        self.about = {
            name: described(unknown.images, np.arange(len(unknown.images.labels)))
            for name, unknown in detection.unknown.items()
        }
        self.found: dict[str, UnknownScores] = {}

    def measure(self, watched: Watched, folder: Path, about: Sequence[object]) -> None:
        """Reads and attacks all images, but for what an interrupted evaluation has done; every process must call it.

        Args:
            watched: the classifier and its detectors, in eval mode.
            folder: of the record of evidence.
            about: what its rows depend on, in plain containers.
        """
        if not self.batches:
            return
        prints: dict[str, str] = {}
        for name in self.batches:
            attacks = {attacked_rows(name, detector): attack for detector, attack in self.attacks.items()}
            prints |= fingerprints([*about, self.about[name]], attacks, [clean_rows(name)])
        store = RecordStore(folder, self.trainer.global_rank, prints)
        for name, loader in self.batches.items():
            measure_unknown(watched, self._shown(name, loader), self.attacks, store, name)
        rows = [row for part in gathered(store.own_rows(self.trainer.world_size)) for row in part]
        store.close()
        for name, unknown in self.detection.unknown.items():
            self.found[name] = unknown_scores(rows, name, len(unknown.images.labels), self.attacks)

    def told(self, table: pa.Table) -> dict[str, Any]:
        """What was measured.

        Args:
            table: all rows of the test samples, whose clean ones are the known images.

        Returns:
            The block ``unknown``: for every set what ``unknown_block`` tells, ``ids_sha256`` of its images and the
            ``attacks`` by detector. Nothing where there are no sets.
        """
        readings = {name: Readings(table, name) for name in self.thresholds}
        known = {name: Known(reading.clean, reading.right) for name, reading in readings.items()}
        shown = {"attacks": {name: dict(attack.shown()) for name, attack in self.attacks.items()}}
        told = {
            name: self.about[name] | shown | unknown_block(found, known, self.thresholds)
            for name, found in self.found.items()
        }
        return {"unknown": told} if told else {}

    def write(self, folder: Path) -> None:
        """Writes the rows of all images that were read."""
        if self.found:
            tables = [found.table(name) for name, found in self.found.items()]
            write_table(pa.concat_tables(tables), folder / UNKNOWN_ROWS)

    def _shown(self, name: str, loader: DataLoader[Batch]) -> Iterable[Batch]:
        hidden = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None
        batches = there(self.trainer, loader)
        return track(batches, f"unknown images: {name}, batches", total=len(loader), disable=hidden)

    def _push(self, name: str, threat: Threat, thresholds: dict[float, float]) -> Attack:
        tau, lowest = thresholds[self.detection.fpr], min(thresholds.values())
        return push(self.detection, name, threat, self.calibration, tau=tau, lowest=lowest)
