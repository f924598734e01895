"""Callbacks of every training run."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.utilities.exceptions import SIGTERMException


class SaveOnInterrupt(pl.Callback):
    """Writes ``last.ckpt`` on Ctrl-C and SIGTERM, so that the run can be continued.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.state.fn == "fit":
            beside = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(beside)
            if trainer.is_global_zero:
                beside.replace(self.path)


class TrainingBar(TQDMProgressBar):
    """The usual progress bar, silent during the test, which has a bar of its own."""

    def init_test_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        pass
