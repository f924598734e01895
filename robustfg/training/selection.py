"""Which epochs may give best.ckpt and end training: with phases, not all."""

import os
import shutil
from pathlib import Path
from typing import Any
from weakref import proxy

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.files import write_atomically
from robustfg.core.safe_load import read_plain
from robustfg.training.phase_change import plan_of


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which leaves out the epochs of phases that do not select.

    A checkpoint that is due is a copy of ``last.ckpt``, made once that is whole: so ``last.ckpt`` always knows of it,
    and can replace a copy that was broken off.

    Attributes:
        due: files to be written at the next place where the state is whole.
        step: optimizer steps of the best model.
    """

    due: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    step: int | None = None

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        plan = plan_of(trainer)
        return (plan is None or plan.selects(trainer.current_epoch)) and super().check_monitor_top_k(trainer, current)

    def write(self, trainer: pl.Trainer, last: Path) -> None:
        """Makes the checkpoints that are due copies of ``last``."""
        for path in self.due:
            _copy(last, path, trainer)
        for path in self.outdated:
            super()._remove_checkpoint(trainer, path)
        if self.due and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
        self.due = self.outdated = ()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = checkpoint["global_step"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        best, last = self.best_model_path, trainer.ckpt_path
        if not best or last is None or trainer.strategy.broadcast(_holds(Path(best), self.step)):
            return
        if self.step != self._resumed:
            raise UserError(
                f"{best} is missing or older than {last} says, where the best {self.monitor} was "
                f"{self.best_model_score:.4g}; put it back, or choose another run_name"
            )
        _copy(Path(last), best, trainer)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state up also where the run's folder was moved."""
        self.step, self.current_score = state_dict.get("step"), state_dict["current_score"]
        old = state_dict["dirpath"]

        def here(path: str) -> str:
            return path and os.path.join(str(self.dirpath), os.path.relpath(path, old))

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": kept})

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.due = (*self.due, filepath)
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        if filepath == self.best_model_path:
            self.step = trainer.global_step

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.outdated = (*self.outdated, filepath)


class LastPhaseStopping(EarlyStopping):
    """Lightning's, which begins to watch in the last phase.

    A run that it has ended trains no further when it is given again, unless with more patience.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and self.wait_count < patience:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _in_last_phase(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _in_last_phase(trainer):
            super().on_train_epoch_end(trainer, pl_module)


def _copy(path: Path, to: str, trainer: pl.Trainer) -> None:
    if trainer.is_global_zero:
        with path.open("rb") as source, write_atomically(to) as target:
            shutil.copyfileobj(source, target)
    trainer.strategy.barrier("copied")


def _holds(path: Path, step: int | None) -> bool:
    """Whether a checkpoint is whole and has had so many optimizer steps, or more."""
    if not path.is_file():
        return False
    try:
        content = read_plain(path, str(path), "checkpoint")
    except UserError:
        return False
    return bool(content["global_step"] >= (step or 0))


def _in_last_phase(trainer: pl.Trainer) -> bool:
    plan = plan_of(trainer)
    return plan is None or plan.is_last(trainer.current_epoch)
