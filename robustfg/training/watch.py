"""The guard's looks at the model between training steps."""

import logging
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from robustfg.attacks import Attack
from robustfg.attacks.freeze import attackable
from robustfg.training.guard import Guard
from robustfg.types import Batch


class Watch(pl.Callback):
    """Measures what the guard judges and does what it demands; all processes together.

    Logs the lowest ``train/guard_single_accuracy`` and ``train/guard_multi_accuracy`` of every epoch, and
    ``train/overfitting``, 1 where a check was bad.

    Args:
        guard: judges and remembers.
        single: the single-step attack that training uses.
        attacking: whether training attacks after so many epochs; before that there is nothing to watch.
    """

    def __init__(self, guard: Guard, single: Attack, attacking: Callable[[float], bool]) -> None:
        self.guard, self.single, self.attacking = guard, single, attacking

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.guard.triggered and self.guard.rescue is None:  # a stopped run that is given again
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        batches = int(trainer.num_training_batches)
        if not (self.guard.due(batch_idx, batches) and self.attacking(trainer.current_epoch + batch_idx / batches)):
            return
        right = [self._right(pl_module, attack, batch, trainer.global_step) for attack in self._attacks]
        counts = torch.stack([*right, torch.tensor(len(batch.label), device=pl_module.device)])
        if trainer.world_size > 1:
            dist.all_reduce(counts)
        single, multi = (counts[:2].double() / counts[2]).tolist()
        good = self.guard.is_good(single, multi)
        found = {"guard_single_accuracy": single, "guard_multi_accuracy": multi, "overfitting": float(not good)}
        for name, value in found.items():
            worst = "max" if name == "overfitting" else "min"
            pl_module.log(f"train/{name}", value, on_step=False, on_epoch=True, reduce_fx=worst, rank_zero_only=False)
        if good:
            self.guard.weights = _weights_of(pl_module)
        else:
            self._mend(trainer, pl_module, single, multi)

    def restart(self, model: pl.LightningModule) -> None:
        """Takes the model's present weights for those of the last good check, which a survey has outdated."""
        if self.guard.weights is not None:
            self.guard.weights = _weights_of(model)

    @property
    def _attacks(self) -> tuple[Attack, Attack]:
        return self.single, self.guard.attack

    def _mend(self, trainer: pl.Trainer, pl_module: pl.LightningModule, single: float, multi: float) -> None:
        assert self.guard.weights is not None
        pl_module.load_state_dict(self.guard.weights)
        self.guard.weights = None
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
            optimizer.zero_grad()
        trainer.should_stop = self.guard.rescue is None
        if trainer.is_global_zero:
            logging.getLogger(__name__).warning(
                "Catastrophic overfitting in epoch %d, step %d: %.0f %% right under the single-step attack, %.0f %% "
                "under the guard's. The last good weights are back; training %s.",
                trainer.current_epoch, trainer.global_step, 100 * single, 100 * multi,
                "stops" if self.guard.rescue is None else f"goes on with {self.guard.rescue.name}",
            )  # fmt: skip

    @staticmethod
    def _right(model: pl.LightningModule, attack: Attack, batch: Batch, draw: int) -> Tensor:
        image = attack(model, batch.image, batch.label, batch.index, draw=draw)
        with attackable(model), torch.no_grad():
            right: Tensor = (model(image).logits.argmax(1) == batch.label).sum()
        return right

    def state_dict(self) -> dict[str, Any]:
        return self.guard.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.guard.load_state_dict(state_dict)


def _weights_of(model: pl.LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
