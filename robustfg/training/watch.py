"""The guard's looks at the model between training steps."""

import logging
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn

from robustfg.attacks import Attack
from robustfg.attacks.runtime.eval_mode import attackable
from robustfg.core.types import Batch
from robustfg.training.guard import Guard


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
        self.worst: dict[str, float] = {}  # of the present epoch, which a checkpoint may fall into

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
            worst = max if name == "overfitting" else min
            self.worst[name] = worst(value, self.worst.get(name, value))
        if good:
            self.guard.weights = _weights(trainer, pl_module)
        else:
            self._mend(trainer, pl_module, single, multi)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, value in self.worst.items():
            pl_module.log(f"train/{name}", value, rank_zero_only=False)
        self.worst = {}

    def restart(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """Takes the model's present weights for those of the last good check, which a survey has outdated."""
        if self.guard.weights is not None:
            self.guard.weights = _weights(trainer, model)

    @property
    def _attacks(self) -> tuple[Attack, Attack]:
        return self.single, self.guard.attack

    def _mend(self, trainer: pl.Trainer, pl_module: pl.LightningModule, single: float, multi: float) -> None:
        assert self.guard.weights is not None
        models = _models(trainer, pl_module)
        for model, weights in zip(models, self.guard.weights, strict=False):  # a continued run may have new callbacks
            model.load_state_dict(weights)
        self.guard.weights = None
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
            optimizer.zero_grad()
        if self.guard.rescue is None:
            trainer.should_stop = True
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
        return self.guard.state_dict() | {"worst": dict(self.worst)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.guard.load_state_dict(state_dict)
        self.worst = dict(state_dict.get("worst", {}))


def _weights(trainer: pl.Trainer, model: pl.LightningModule) -> list[dict[str, Tensor]]:
    return [{k: v.detach().clone() for k, v in each.state_dict().items()} for each in _models(trainer, model)]


def _models(trainer: pl.Trainer, model: pl.LightningModule) -> list[nn.Module]:
    """The model, and its running averages where callbacks keep any."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [callback._average_model for callback in callbacks if isinstance(callback, WeightAveraging)]
    return [model, *(average for average in averages if average is not None)]
