"""A cheap look at robustness during training, exact on any number of processes."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch

from robustfg.attacks import Attack
from robustfg.core.errors import refuse_outside
from robustfg.core.precision import exact_arithmetic
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.data.splits import balanced_subset
from robustfg.evaluation.confusion import confusion_of
from robustfg.evaluation.gather import total
from robustfg.evaluation.measure import Classify


class ValidationRobustness(pl.Callback):
    """Attacks a part of the validation split and logs ``val/robust_accuracy``, which may choose the checkpoint.

    Args:
        attacks: the suite; its last attack is used.
        samples: size of the part, which is fixed and class-balanced.
    """

    def __init__(self, *, attacks: Mapping[str, Attack], samples: int = 128) -> None:
        refuse_outside("evaluation.validation.samples", samples, least=1)
        self.attack = list(attacks.values())[-1]
        self.samples = samples
        self.now = self.attack
        self.chosen: set[int] = set()
        self.correct = self.n = 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule)
        subset = balanced_subset(np.asarray(data.samples("val").labels), self.samples)
        self.chosen, self.correct, self.n = set(data.positions["val"][subset].tolist()), 0, 0
        self.now = self.attack.told(lambda: confusion_of(cast(Classify, pl_module), data, pl_module.device))

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        chosen = torch.tensor([i in self.chosen for i in batch.index.tolist()], device=batch.index.device)
        if not bool(chosen.any()):
            return
        with exact_arithmetic():
            image, label, index = (tensor[chosen].clone() for tensor in batch)
            adversarial = self.now(pl_module, image, label, index)
            with torch.no_grad():
                clean, attacked = (pl_module(x).logits.argmax(1) == label for x in (image, adversarial))
        self.correct += int((clean & attacked).sum())
        self.n += len(label)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        correct, n = total([self.correct, self.n])
        pl_module.log("val/robust_accuracy", correct / n, prog_bar=True, rank_zero_only=False)
