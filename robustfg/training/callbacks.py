"""Callbacks of every training run."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, ProgressBar, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from robustfg.errors import UserError

LOOK_EVERY = 10  # batches between two looks at the other processes, which cost a collective


class SaveOnInterrupt(pl.Callback):
    """Writes ``last.ckpt`` on Ctrl-C and SIGTERM, so that the run can be continued.

    SIGTERM only sets a flag; all processes agree on it and stop at the same step. (Lightning's own handler starts a
    collective inside the signal handler, which hangs when every process gets the signal, as SLURM sends it.)

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.told_to_stop = False
        self.previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._note)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        stop = self.told_to_stop
        if trainer.world_size > 1:
            if batch_idx % LOOK_EVERY:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            raise SIGTERMException

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.state.fn == "fit":
            beside = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(beside)
            if trainer.is_global_zero:
                beside.replace(self.path)

    def _note(self, *_: Any) -> None:
        self.told_to_stop = True


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
