"""last.ckpt: written where the state of training is whole, and how training goes on from there."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from robustfg.core.errors import UserError
from robustfg.core.files import write_atomically
from robustfg.training.selection import BestCheckpoint
from robustfg.training.stopping import StopSignals


class WholeFiles(TorchCheckpointIO):
    """Checkpoints are written beside their final name and renamed; Lightning's own way goes through ``TMPDIR``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with write_atomically(path) as file:
            torch.save(checkpoint, file)


@runtime_checkable
class Rewindable(Protocol):
    """A log that can go back to what it held when a checkpoint was written."""

    def position(self) -> int:
        """How much there is."""

    def rewind(self, position: int) -> None:
        """Forgets what came later."""


class LastCheckpoint(pl.Callback):
    """Writes ``last.ckpt`` after every epoch, with every new best one, and where training is told to stop.

    It is written only where the state is whole: between two epochs, or between two optimizer steps once the validation
    that is due has been done; never inside an accumulated step, nor while averaged weights stand in for the model's.
    A wish to stop waits for such a place, on which all processes agree. It must be the first of all callbacks, so that
    nothing of a new epoch or phase has begun.

    A continued run ends with the same weights, the same rows and the same best checkpoint as one that never stopped.

    Args:
        path: the file.

    Attributes:
        signals: what asks to stop.
        step: optimizer steps of the model in the file; None where there is no file yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.signals = Path(path), StopSignals()
        self.step: int | None = None
        self._resumed: dict[str, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer.strategy.checkpoint_io = WholeFiles()
            self.signals.listen_if_spawned()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        together, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
        every = trainer.val_check_batch
        if trainer.enable_validation and every is not None and every < batches and every % together:
            raise UserError(
                f"trainer.val_check_interval: validation after every {every} batches falls inside optimizer steps of "
                f"{together}; choose a multiple of trainer.accumulate_grad_batches"
            )
        then = self._resumed.get("batches", batches)
        if self._resumed.get("seen", 0) and then != batches:
            raise UserError(
                f"{self.path} was written in the middle of an epoch of {then} batches, which has {batches} now; "
                "continue with the same trainer.devices, trainer.limit_train_batches and data.batch_size"
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._at_whole_place(trainer, after_epoch=trainer.global_step > 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            # Lightning miscounts it after a checkpoint inside an epoch; rows are logged under it.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._at_whole_place(trainer, after_epoch=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told(trainer)  # so that all processes end before the evaluation, or none
        self._save(trainer)

    def _at_whole_place(self, trainer: pl.Trainer, *, after_epoch: bool) -> None:
        told = self._told(trainer)
        if told or after_epoch or any(best.due for best in _best_checkpoints(trainer)):
            self._save(trainer)
        if told:
            raise SIGTERMException

    def _told(self, trainer: pl.Trainer) -> bool:
        told = self.signals.told is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
            if told:
                requeue = trainer.strategy.reduce_boolean_decision(self.signals.requeues, all=False)
                self.signals.tell(requeue=requeue)
        return told

    def _save(self, trainer: pl.Trainer) -> None:
        try:
            if trainer.global_step != self.step:
                for logger in trainer.loggers:
                    logger.save()  # the rows that the checkpoint counts
                trainer.save_checkpoint(self.path, weights_only=False)
                self.step = trainer.global_step
            for best in _best_checkpoints(trainer):
                best.write(trainer, self.path)
        except UserError as error:
            if "cannot be written" not in str(error):
                raise
            kept = "nothing was saved before"
            if self.step is not None:
                kept = f"{self.path} holds step {self.step}, from where the same command continues"
            raise UserError(f"{error}; {kept}") from error

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, seen = make_whole(checkpoint["loops"]["fit_loop"])
        checkpoint["epoch"] = max(epoch - (not seen), 0)  # that of the last step
        rows = [logger.position() for logger in trainer.loggers if isinstance(logger, Rewindable)]
        checkpoint["whole"] = {"batches": int(trainer.num_training_batches), "rows": rows}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loops, known = checkpoint["loops"]["fit_loop"], checkpoint.get("whole", {})
        _, seen = make_whole(loops)  # again, for checkpoints of earlier versions
        # Lightning does this only after it has begun to load the first batches, which depend on the epoch.
        trainer.fit_loop.epoch_progress.load_state_dict(loops["epoch_progress"])
        self.step = checkpoint["global_step"]
        self._resumed = {"seen": seen} | {key: known[key] for key in ("batches",) if key in known}
        logs = [logger for logger in trainer.loggers if isinstance(logger, Rewindable)]
        for logger, position in zip(logs, known.get("rows", ()), strict=False):
            logger.rewind(position)


def _best_checkpoints(trainer: pl.Trainer) -> list[BestCheckpoint]:
    return [each for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)]


def place_of(loops: dict[str, Any]) -> tuple[int, int]:
    """How many epochs are over, and how many batches of the next have been trained on.

    Args:
        loops: state of Lightning's ``fit_loop`` at a whole place.
    """
    epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    over, seen = epochs["processed"], batches["current"]["completed"]
    through = batches["is_last_batch"] and batches["current"]["ready"] == seen
    if epochs["started"] < epochs["ready"]:  # before the first batch of an epoch
        return over, 0
    if epochs["ready"] > over:  # in an epoch, or after its last batch
        return (over + 1, 0) if through else (over, seen)
    return (over, 0) if through or not seen else (over - 1, seen)  # training has ended, perhaps in the middle


def make_whole(loops: dict[str, Any]) -> tuple[int, int]:
    """Writes the place into the counters of ``fit_loop`` in the one way that Lightning continues from exactly.

    Returns:
        The place: epochs that are over, and batches of the next that have been trained on.
    """
    epoch, seen = place_of(loops)
    begun = epoch + (seen > 0)
    for scope in ("total", "current"):
        loops["epoch_progress"][scope] = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
        for progress in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
            counters = loops[progress][scope]
            done = counters["completed"]
            loops[progress][scope] = dict.fromkeys(counters, done)
    current = loops["epoch_loop.batch_progress"]["current"]
    loops["epoch_loop.batch_progress"] |= {"current": dict.fromkeys(current, seen), "is_last_batch": False}
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
    return epoch, seen
