"""Trains as one of two processes, of which the second is told to stop: python stopped_ranks.py rank port folder."""

import signal

import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from small_classifiers import classifier, data, regimes, trainer
from two_ranks import joined, strategy

from robustfg.training.callbacks import WarmedEma
from robustfg.training.continuing import LastCheckpoint

rank, folder = joined()


class Told(LastCheckpoint):
    at = None

    def _told(self, loop):
        self.signals.told = signal.SIGTERM if rank == 1 and loop.global_step == self.at else None
        return super()._told(loop)


def train(name, at=None):
    keep = Told(folder / name / "last.ckpt")
    keep.at = at
    loop = trainer(
        callbacks=[keep, WarmedEma(decay=0.9)], precision="32-true", strategy=strategy(), devices=2,
        limit_train_batches=6, accumulate_grad_batches=2,
    )  # fmt: skip
    model, last = classifier(regimes()["free"]), keep.path
    stopped = False
    try:
        loop.fit(model, data(4), ckpt_path=last if last.exists() else None, weights_only=True)
    except SIGTERMException:
        stopped = True
    return {"stopped": stopped, "step": loop.global_step, "weights": model.state_dict()}


torch.save({"whole": train("whole"), "first": train("parts", 4), "second": train("parts")}, folder / f"{rank}.pt")
