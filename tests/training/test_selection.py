import pytorch_lightning as pl
import torch
from small_classifiers import trainer
from small_phases import classifier, data, phases

from robustfg.training import Phase, Phases
from robustfg.training.continuing import LastCheckpoint
from robustfg.training.selection import BestCheckpoint, LastPhaseStopping


class Scores(pl.Callback):
    """Logs planted scores, one an epoch."""

    def __init__(self, *scores):
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("planted", self.scores[trainer.current_epoch])


def selected(tmp_path, plan, *scores, patience=None):
    best = BestCheckpoint(tmp_path, monitor="planted", mode="max", filename="best")
    stopping = [LastPhaseStopping("planted", mode="max", patience=patience)] if patience else []
    callbacks = [LastCheckpoint(tmp_path / "last.ckpt"), Scores(*scores), best, *stopping]
    loop = trainer(
        max_epochs=len(scores), callbacks=callbacks, enable_checkpointing=True, limit_val_batches=1,
        precision="32-true",
    )  # fmt: skip
    loop.fit(classifier(plan), data())
    return torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"], loop.current_epoch


def test_the_best_checkpoint_is_one_of_a_phase_that_selects(tmp_path):
    assert selected(tmp_path / "a", phases(), 0.9, 0.8, 0.7, 0.2, 0.1, 0.3, 0.2)[0] == 5
    assert selected(tmp_path / "b", None, 0.5, 0.9, 0.7, 0.2)[0] == 1
    assert selected(tmp_path / "c", Phases((Phase(name="all", epochs=1),)), 0.5, 0.9, 0.7)[0] == 1


def test_training_is_not_stopped_before_the_last_phase(tmp_path):
    plan = Phases((*phases().phases[:2], Phase(name="last", epochs=5, surveys=["means"])))
    assert selected(tmp_path / "a", plan, 0.9, 0.8, 0.7, 0.3, 0.4, 0.2, 0.1, 0.5, patience=2) == (4, 7)
    assert selected(tmp_path / "b", None, 0.9, 0.8, 0.7, 0.3, patience=2) == (0, 3)
