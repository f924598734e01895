"""MCAT: joint training of classification and detection on a head that decides by distance."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback
from torch import Tensor

from robustfg.attacks.objectives.distances import wrong_maximum
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.frozen_means import FrozenMeans, means_of
from robustfg.training.halves import Half, Halves, first_half
from robustfg.training.regime import Classify, Standard


@dataclass(kw_only=True, eq=False)
class Mcat(Halves):
    """MCAT, joint classification and detection in the GM authors' release, in two stages of training.

    For heads that have ``means`` (K, D) and whose logits are -D_k / 2: gm, mmc and mmlda.
    Stage 1, ``clean_epochs`` long: the loss module's own loss L on the first half of every batch, clean.
    Stage 2: the means are frozen, the first half is clean and the second attacked towards the nearest wrong mean:
    clean L + nearest * beta * min_k D_k; attacked (1 - w) L + w beta max(0, tau - min_{k != y} D_k),
    where tau = threshold * the mean of ||mu_i - mu_j||^2 over all i != j. Images that are moved far should lie far from
    every wrong mean, where a threshold on min_k D_k rejects them.

    There L = CE_margin + lambda mean_k D_k, which is gm with ``likelihood_factor=1 likelihood_over_all_classes=true``.
    It is taken sample by sample where w weighs it, so it must be a mean over the samples, as those heads' losses are.
    In tau centres lie apart as in a mixture of unit covariances.

    Args:
        beta: weight of what makes distances detect; 0.5 there.
        nearest: weight of the smallest distance on clean images, in units of beta; 1.5 there.
        threshold: tau as a share of the mean squared distance between means; 0.7 there.
    """

    beta: float = 0.5
    nearest: float = 1.5
    threshold: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("beta", "nearest", "threshold"):
            if not getattr(self, option) >= 0:
                raise UserError(f"training.{option} must be >= 0, got {getattr(self, option)}")

    def refuse_loss(self, loss: LossModule) -> None:
        means_of(loss)

    def terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor | None) -> dict[str, Tensor]:
        if adversarial is None:
            return Standard().terms(model, loss, first_half(batch), None)
        return self.robust_terms(model, loss, batch, adversarial)

    def clean_terms(self, loss: LossModule, half: Half) -> dict[str, Tensor]:
        with resting(loss):
            terms = super().clean_terms(loss, half)
        nearest = -2 * half.output.logits.amax(1).mean()
        return terms | {"loss": terms["loss"] + self.nearest * self.beta * nearest, "nearest": nearest}

    def attacked_loss(self, loss: LossModule, half: Half) -> Tensor:
        closeness = F.relu(self.tau(loss) + 2 * wrong_maximum(half.output.logits, half.label))
        with resting(loss):
            own = each(loss, half)
        return (1 - half.fading) * own + half.fading * self.beta * closeness

    def tau(self, loss: LossModule) -> Tensor:
        """The distance to a wrong mean that is wanted of an image moved far, a scalar."""
        means = means_of(loss).detach()
        count = len(means)
        # Over all pairs, the same included, the mean is twice the mean squared distance to the mean of means.
        spread = 2 * (means - means.mean(0)).square().sum(1).mean()
        return self.threshold * spread * count / (count - 1)

    def callbacks(self) -> list[Callback]:
        return [FrozenMeans(lambda epoch: self.strength(epoch) > 0)]


def each(loss: LossModule, half: Half) -> Tensor:
    """The loss module's own loss on every sample alone, ``(b,)``."""
    singles = zip(half.output.chunk(len(half.label)), torch.split(half.label, 1), strict=True)
    return torch.stack([loss.loss(output, label)["loss"] for output, label in singles])


@contextmanager
def resting(loss: LossModule) -> Iterator[None]:
    """In eval mode, where means that follow the features stay where they are."""
    training = loss.training
    try:
        loss.eval()
        yield
    finally:
        loss.train(training)
