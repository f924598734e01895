"""A tiny classifier in float64, written out by hand beside it, and how to train it for a moment."""

import signal

import pytorch_lightning as pl
import torch
from torch import nn
from toy import SIZE, Blobs

from robustfg.attacks import (
    Backtracking,
    CrossEntropy,
    GradientAttack,
    Linf,
    NearestWrongCentre,
    Steepest,
    WrongConfidence,
)
from robustfg.classifier import Classifier
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.losses import GaussianMixture, Softmax
from robustfg.training import (
    Adversarial,
    Ccat,
    Fast,
    Free,
    Guard,
    Mart,
    Mcat,
    Standard,
    Trades,
    WeightPerturbation,
)
from robustfg.training.continuing import LastCheckpoint

LOSSES = {
    "softmax": lambda: Softmax(channels=4, num_classes=3),
    "gm": lambda: GaussianMixture(channels=4, num_classes=3, margin=0.3, likelihood=0.1),
}


class Model(nn.Module):
    def __init__(self, loss="softmax", norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Softplus(beta=5)
        )
        self.loss = LOSSES[loss]()
        self.double().train()

    def forward(self, image):
        return self.loss(self.features(image))


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    return Batch(image, torch.tensor([0, 1, 2, 0, 1]), torch.tensor([11, 4, 8, 2, 30]))


def logits_by_hand(model, image):
    embedding = model.features(image).mean((2, 3))
    if isinstance(model.loss, Softmax):
        return embedding @ model.loss.classifier.weight.T + model.loss.classifier.bias
    return -(embedding[:, None] - model.loss.means).pow(2).sum(2) / 2


def loss_by_hand(model, image, label):
    """Cross-entropy; for gm with the true distance times 1.3, plus a tenth of it."""
    logits, rows = logits_by_hand(model, image), torch.arange(len(label))
    if isinstance(model.loss, Softmax):
        return -logits.softmax(1)[rows, label].log().mean()
    true, widened = logits[rows, label], logits.clone()
    widened[rows, label] = 1.3 * true
    return -widened.softmax(1)[rows, label].log().mean() - 0.1 * true.mean()


def kl_by_hand(clean, attacked):
    p, q = clean.softmax(1), attacked.softmax(1)
    return (p * (p.log() - q.log())).sum(1)


def gradients(model, value):
    return torch.autograd.grad(value, list(model.parameters()))


def same(first, second, tolerance=1e-9):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(first, second, strict=True))


def pgd(steps=3, name="pgd", size="eps/2", last_iterate=True):
    return GradientAttack(
        threat=Linf(epsilon="16/255"), step=Steepest(size=size), steps=steps, objective=CrossEntropy(),
        random_start=True, last_iterate=last_iterate, name=name,
    )  # fmt: skip


def climb(objective):
    return Backtracking(
        threat=Linf(epsilon="16/255"), objective=objective, size="eps/3", steps=3, last_iterate=True, name="climb"
    )


def guard(**options):
    return Guard(attack=pgd(3, "guard"), **options)


def regimes(**onset):
    """Every regime by name."""
    threat = Linf(epsilon="16/255")
    return {
        "standard": Standard(),
        "adversarial": Adversarial(attack={"pgd": pgd()}, **onset),
        "train mode": Adversarial(attack={"pgd": pgd()}, clean_share=0.5, craft_in_train_mode=True, **onset),
        "fast": Fast(attack={"fast": pgd(1, "fast", "1.25*eps")}, guard=guard(checks_per_epoch=2), **onset),
        "free": Free(epsilon="16/255", replays=3, **onset),
        "trades": Trades(threat=threat, steps=3, **onset),
        "mart": Mart(attack={"pgd": pgd()}, **onset),
        "ccat": Ccat(attack={"climb": climb(WrongConfidence())}, **onset),
        "mcat": Mcat(attack={"climb": climb(NearestWrongCentre())}, **onset),
        "awp": WeightPerturbation(regime=Adversarial(attack={"pgd": pgd()}, **onset)),
        "awp trades": WeightPerturbation(regime=Trades(threat=threat, steps=2, **onset), warmup_epochs=0.5),
        "awp free": WeightPerturbation(regime=Free(epsilon="16/255", replays=2, **onset)),
    }


class Backbone(nn.Module):
    """Without batch norm, so that a batch may be cut into parts."""

    channels = 6

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Softplus(beta=5), nn.Conv2d(4, 6, 3, 2))

    def forward(self, image):
        return self.layers((image - 0.5) / 0.25)


def classifier(regime, loss_ramp=1):
    torch.manual_seed(0)
    loss = GaussianMixture(channels=6, num_classes=5, embedding_dim=3, margin_start=0.1, ramp_epochs=loss_ramp)
    return Classifier(
        backbone=Backbone(), loss=loss, num_classes=5, regime=regime,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    )  # fmt: skip


def data(batch_size=8):
    return DataModule(source=Blobs(train=60), image_size=SIZE, batch_size=batch_size, num_workers=0)


def trainer(**options):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    exact = {"use_distributed_sampler": False, "precision": "64-true", "max_epochs": 2, "limit_val_batches": 0}
    return pl.Trainer(**(quiet | exact | {"enable_checkpointing": False} | options))


def fitted(regime, batch_size=8, loss_ramp=1, **options):
    """The classifier after two epochs of six batches of eight."""
    model = classifier(regime, loss_ramp)
    trainer(**options).fit(model, data(batch_size))
    return model


def results(regime, batch_size, **options):
    """What one epoch of six batches leaves: weights, free's perturbation and the accuracies that a guard took."""
    model = fitted(regime, batch_size, max_epochs=1, limit_train_batches=6, **options)
    below = getattr(regime, "regime", regime)
    checks = below.guard.good if isinstance(below, Fast) else []
    return {"weights": model.state_dict(), "noise": getattr(below, "noise", {}), "checks": checks}


class StoppedAt(LastCheckpoint):
    """Is told to stop after so many steps."""

    def __init__(self, path, step):
        super().__init__(path)
        self.at = step

    def _at_whole_place(self, trainer, **options):
        self.signals.told = signal.SIGTERM if trainer.global_step == self.at else None
        super()._at_whole_place(trainer, **options)
