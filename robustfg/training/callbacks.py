"""Callbacks of every training run."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, ProgressBar, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor

from robustfg.core.errors import UserError


class WarmedEma(EMAWeightAveraging):
    """An exponential moving average of the weights whose decay grows from 0, so that the first weights are forgotten.

    After n averaged steps the decay is min(decay, (1 + n) / (10 + n)), as TensorFlow's averages have it.

    Args:
        decay: the final decay.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay must be in [0, 1), got {decay}")
        super().__init__()

        def average(mean: Tensor, value: Tensor, count: Tensor) -> Tensor:
            steps = float(count)
            kept = min(decay, (1 + steps) / (10 + steps))
            return mean + (1 - kept) * (value - mean)  # what is frozen stays to the last bit

        self._kwargs["avg_fn"] = average

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the model alone, since the last checkpoint is to hold its own weights too."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._copy_average_to_current(pl_module)  # also where a finished run had nothing left to train

    def restart(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        """Forgets what was averaged and begins anew with the model's present weights."""
        assert self._average_model is not None
        self._average_model.module.load_state_dict(model.state_dict())
        self._average_model.n_averaged.zero_()


class TrainingBar(TQDMProgressBar):
    """The usual progress bar, silent during the test, which has a bar of its own."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()  # what is said next begins on a line of its own

    def init_test_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        pass


class TrainingLines(ProgressBar):
    """A line for every epoch instead of a bar, for a log that is no terminal."""

    def disable(self) -> None:
        """Nothing: rank 0 alone prints."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        done, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        spent = time.monotonic() - self.began
        found = [f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()]
        left = clock(spent / (done - self.first) * max(last - done, 0))
        print(f"epoch {done}/{last}: {', '.join(found)}; {clock(spent)}, about {left} left", flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
