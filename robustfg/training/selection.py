"""Which epochs may give best.ckpt and end training: with phases, not all."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from robustfg.training.phase_change import plan_of


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which leaves out the epochs of phases that do not select."""

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        plan = plan_of(trainer)
        return (plan is None or plan.selects(trainer.current_epoch)) and super().check_monitor_top_k(trainer, current)


class LastPhaseStopping(EarlyStopping):
    """Lightning's, which begins to watch in the last phase."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _in_last_phase(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _in_last_phase(trainer):
            super().on_train_epoch_end(trainer, pl_module)


def _in_last_phase(trainer: pl.Trainer) -> bool:
    plan = plan_of(trainer)
    return plan is None or plan.is_last(trainer.current_epoch)
