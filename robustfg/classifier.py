"""The LightningModule: a backbone, a loss module and a training regime."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.memory_layout import protect
from robustfg.core.types import Batch, Output
from robustfg.losses import LossModule
from robustfg.models import Backbone
from robustfg.models.backbone import unused_names
from robustfg.models.taps import with_layers
from robustfg.models.unreached import drop_from_optimizers
from robustfg.training import Constant, PhaseChange, Phases, Regime, Schedule, Standard
from robustfg.training.gather import gathered
from robustfg.training.phases import parameter_groups

CHECK_FINITE_EVERY = 20  # batches between looks at the loss, which cost a device synchronisation


class Classifier(pl.LightningModule):
    """Images in [0, 1] to ``Output``, and how that is trained.

    Args:
        backbone: images to feature maps.
        loss: head and criterion.
        num_classes: number of classes.
        regime: how a batch becomes a loss.
        optimizer: makes the optimizer from the parameters, or from groups of them where there are phases.
        schedule: learning-rate factor over the epochs; phases have their own.
        phases: spans of training with learning rates, frozen parts and surveys of their own; None for none.
        seed: with epoch and batch it fixes a step's random numbers, so that a resumed run repeats them.
        stored: plain containers to keep in every checkpoint: the config and the class names.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | nn.Module,
        loss: LossModule,
        num_classes: int,
        regime: Regime | None = None,
        optimizer: Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer] = torch.optim.SGD,
        schedule: Schedule | None = None,
        phases: Phases | None = None,
        seed: int = 0,
        stored: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.loss = backbone, loss
        protect(backbone)  # a network of the user's own may be narrow and in channels-last layout as well
        self.regime, self.optimizer, self.schedule = regime or Standard(), optimizer, schedule or Constant()
        self.phases, self.seed, self.stored = phases, seed, stored or {}
        self.regime.refuse_loss(loss)
        if phases is not None:
            phases.refuse_unknown(loss)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_loss = MeanMetric()
        self._finite: Tensor | bool = True
        self._replayed: list[tuple[Batch, int]] = []  # the batches of the present optimizer step
        self._revisiting = False

    def forward(self, image: Tensor, layers: Sequence[str] = ()) -> Output:
        """Classifies images ``(B, 3, H, W)`` in [0, 1].

        Args:
            image: the images.
            layers: parts of the backbone's network whose features are wanted in ``Output.layers``.
        """
        output: Output
        if not layers:
            output = self.loss(self.backbone(image))
            return output
        feature_map, found = with_layers(self.backbone, image, layers)
        output = self.loss(feature_map)
        return replace(output, layers=found)

    def anomaly(self, output: Output) -> Tensor:
        """How abnormal the input looks, ``(B,)``, higher is more abnormal; the loss module's own score."""
        return self.loss.anomaly(output)

    def explain(self, image: Tensor) -> tuple[Output, dict[str, Tensor]]:
        """What ``forward`` gives, and where the evidence for it lies: maps ``(B, h, w)`` by name."""
        feature_map = self.backbone(image)
        output: Output = self.loss(feature_map)
        return output, self.loss.evidence(feature_map, output)

    def configure_callbacks(self) -> list[pl.Callback]:
        callbacks = self.regime.callbacks()
        if self.phases is not None:
            callbacks = [*callbacks, PhaseChange(phases=self.phases, backbone=self.backbone, loss=self.loss)]
        return callbacks

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        moment = (self.seed * 1_000_003 + self.current_epoch) * 16_777_213 + batch_idx
        torch.manual_seed((moment * 4099 + self.global_rank) % 2**63)
        if self.regime.replays > 1:
            self._replayed.append((batch, batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.loss.epoch = self.current_epoch + batch_idx / max(self.trainer.num_training_batches, 1)
        slot = batch_idx % self.trainer.accumulate_grad_batches
        terms = self.regime(self, self.loss, batch, self.global_step, slot)
        if not self._revisiting:
            found = {f"train/{name}": term.detach() for name, term in terms.items()}
            self.log_dict(found, batch_size=len(batch.label))
        self._finite = self._finite & terms["loss"].detach().isfinite()
        if (batch_idx + 1) % CHECK_FINITE_EVERY == 0:
            self._stop_unless_finite()
        return terms["loss"]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._revisiting = True
        try:
            for _ in range(self.regime.replays - 1):
                super().optimizer_step(epoch, batch_idx, optimizer, partial(self._gradient_again, optimizer))
        finally:
            self._revisiting = False
            self._replayed.clear()

    def _gradient_again(self, optimizer: Optimizer | LightningOptimizer) -> Tensor:
        """Forward and backward over all batches of the present optimizer step, as Lightning's own closure does."""
        optimizer.zero_grad()
        strategy, total = self.trainer.strategy, torch.zeros((), device=self.device)
        for left, (batch, batch_idx) in zip(reversed(range(len(self._replayed))), self._replayed, strict=True):
            alone = left and isinstance(strategy, ParallelStrategy)
            with cast(ParallelStrategy, strategy).block_backward_sync() if alone else nullcontext():
                value = cast(Tensor, strategy.training_step(batch, batch_idx)) / self.trainer.accumulate_grad_batches
                strategy.backward(value, cast(Optimizer, optimizer))
            total += value.detach()
        return total

    def on_validation_start(self) -> None:
        self._stop_unless_finite()

    def on_train_epoch_end(self) -> None:
        self._stop_unless_finite()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self(batch.image)
        self.val_accuracy.update(output.logits, batch.label)
        self.val_loss.update(self.loss.loss(output, batch.label)["loss"], weight=len(batch.label))

    def on_validation_epoch_end(self) -> None:
        # Sums of counts over all ranks: exact, since the sampler repeats nothing.
        self.log("val/accuracy", self.val_accuracy.compute(), prog_bar=True, rank_zero_only=False)
        self.log("val/loss", self.val_loss.compute(), rank_zero_only=False)
        self.val_accuracy.reset()
        self.val_loss.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.test_accuracy.update(self(batch.image).logits, batch.label)

    def refuse_epochs(self, max_epochs: int | None) -> None:
        """Raises ``UserError`` where regime, phases or optimizer cannot be what was asked in so many epochs."""
        if max_epochs is None or max_epochs < 1:
            raise UserError(f"trainer.max_epochs must be >= 1, got {max_epochs}: schedules are told in epochs")
        self.regime.refuse_epochs(max_epochs)
        if self.phases is None:
            self.schedule.refuse_epochs(max_epochs, "trainer.max_epochs")
        else:
            self.phases.stretched(max_epochs)
        settings = self._optimizer_of([torch.nn.Parameter(torch.zeros(1))]).defaults
        refuse_outside("optimizer.momentum", settings.get("momentum"), below=1)
        if self.phases is None:
            refuse_outside("optimizer.lr", float(settings["lr"]), above=0)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        max_epochs = self.trainer.max_epochs
        if max_epochs is None or max_epochs < 1:
            raise UserError(f"trainer.max_epochs must be >= 1, got {max_epochs}: schedules are told in epochs")
        _ = self.trainer.estimated_stepping_batches  # makes the trainer count its batches
        steps = max(math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches), 1)  # an epoch
        if self.phases is None:
            optimizer = self._optimizer_of(self.parameters())
            scheduler = LambdaLR(optimizer, _by_step(lambda epoch: self.schedule(epoch, max_epochs), steps))
        else:
            groups, plan = parameter_groups(self.backbone, self.loss), self.phases.stretched(max_epochs)
            optimizer = self._optimizer_of([{"params": members, "name": name} for name, members in groups.items()])
            rates = [plan.rate(name, optimizer.defaults["lr"]) for name in groups]
            for group in optimizer.param_groups:
                group["lr"] = 1.0  # LambdaLR multiplies it by the rate
            scheduler = LambdaLR(optimizer, [_by_step(rate, steps) for rate in rates])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer_of(self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> Optimizer:
        try:
            return self.optimizer(parameters)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer: {error}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_unless_finite()
        checkpoint["robustfg"] = self.stored
        state = self.regime.state_dict()  # every process has its own
        checkpoint["regime"] = gathered(state) if state else [state]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        drop_from_optimizers(checkpoint, {name for name, _ in self.named_parameters()}, unused_names(self))
        states = checkpoint.get("regime", [])
        if self.global_rank < len(states) and states[self.global_rank]:
            self.regime.load_state_dict(states[self.global_rank])

    def _stop_unless_finite(self) -> None:
        if not bool(self._finite):
            raise UserError(
                f"training stopped in epoch {self.current_epoch}, step {self.global_step}: the loss is not finite. The "
                "last good checkpoint is kept; lower optimizer.lr or set trainer.gradient_clip_val"
            )


def _by_step(by_epoch: Callable[[float], float], steps_per_epoch: int) -> Callable[[int], float]:
    return lambda step: by_epoch(step / steps_per_epoch)
