"""A small data set and classifier, and how to evaluate variants of it."""

import numpy as np
import pytorch_lightning as pl
from torch import nn

from robustfg.attacks import CrossEntropy, GradientAttack, Linf, Margin, Steepest
from robustfg.data.arrays import ArraySplit
from robustfg.data.datamodule import DataModule
from robustfg.evaluation import RobustnessEvaluation

SIZE, CLASSES = 12, 5


class Blobs:
    """Every class brightens its own region a little; noise everywhere."""

    classes = tuple("abcde")
    genera = None
    val = None

    def __init__(self, train=400, test=101):
        generator = np.random.default_rng(0)
        self.templates = generator.uniform(0, 1, (CLASSES, 3, 3)).repeat(4, 1).repeat(4, 2)
        self.train, self.test = (self._split(generator, n, name) for n, name in ((train, "train"), (test, "test")))

    def _split(self, generator, n, name):
        labels = np.arange(n) % CLASSES
        pixels = 0.35 + 0.3 * self.templates[labels] + generator.normal(0, 0.08, (n, SIZE, SIZE))
        return ArraySplit((pixels.clip(0, 1) * 255).astype(np.uint8), labels.astype(np.int64), name)


class Convolutions(nn.Module):
    channels = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
        )

    def forward(self, image):
        return self.layers((image - 0.5) / 0.25)


def data_module(**options):
    return DataModule(source=Blobs(), image_size=SIZE, **({"batch_size": 32, "num_workers": 0} | options))


def suite(**changes):
    shared = {"threat": Linf(epsilon="8/255")}
    return {
        "fgsm": GradientAttack(
            name="fgsm", step=Steepest(size="eps"), steps=1, objective=CrossEntropy(), **(shared | changes)
        ),
        "pgd": GradientAttack(
            name="pgd", step=Steepest(size="eps/4"), steps=10, objective=Margin(), random_start=True,
            **(shared | changes),
        ),
    }  # fmt: skip


def evaluate(model, folder, attacks=None, data=None, **options):
    callback = RobustnessEvaluation(
        attacks=attacks or suite(), folder=folder, about={"run": "r", "data": "blobs", "loss": "softmax", "seed": 0},
        **({"checks": 101, "gallery": 3} | options),
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(model, data or data_module(), verbose=False)
    return callback.summary


def row(index, attack, restart, correct, **extra):
    return {
        "index": index, "label": 0, "attack": attack, "restart": restart, "prediction": 0 if correct else 1,
        "correct": correct, "margin": 1.0 if correct else -1.0, "norm": 0.0, "anomaly": 0.0, "first_success": -1,
        "forwards": 2, "backwards": 1, "dead_gradient": False, "borderline": False, "seconds": 0.5, **extra,
    }  # fmt: skip
