"""Mixup and CutMix: training on mixtures of two images, with the loss of both labels."""

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from robustfg.attacks.rng.philox import keyed_uniforms
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.regime import Classify, Moment, Regime, accuracy


@dataclass(frozen=True)
class Mixture:
    """Who is mixed with whom, and how much of every image is its own."""

    partner: Tensor
    """``(B,)`` positions in the batch; nobody is their own partner where there are two samples."""
    weight: float
    """Share of the sample's own label, lambda in the papers; the partner's has the rest."""


class Mixup(Regime):
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), one of the two at every step, for any loss module.

    Mixup trains on lambda x + (1 - lambda) x', CutMix on x with a rectangle of x' whose share of the image is
    1 - lambda, lambda drawn from Beta(alpha, alpha) once a batch as in the authors' releases. The loss is
    lambda L(., y) + (1 - lambda) L(., y'), term by term, from one forward pass; for cross-entropy that is the loss with
    mixed labels. CutMix's lambda is corrected to the share that the rectangle really has after rounding and clipping.

    Partners come from the same batch, so that several processes mix otherwise than one. All random numbers are a
    function of seed, training step, slot and, for the partners, of the samples' ids.

    Args:
        mixup_alpha: of Mixup; smaller mixes less.
        cutmix_alpha: of CutMix.
        cutmix_share: share of steps that use CutMix, in [0, 1].
        seed: of the mixtures.
    """

    def __init__(
        self, *, mixup_alpha: float = 0.2, cutmix_alpha: float = 1.0, cutmix_share: float = 0.5, seed: int = 0
    ) -> None:
        for option, value in {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha}.items():
            if not 0 < value < float("inf"):
                raise UserError(f"training.{option} must be > 0 and finite, got {value}")
        if not 0 <= cutmix_share <= 1:
            raise UserError(f"training.cutmix_share must be in [0, 1], got {cutmix_share}")
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.cutmix_share, self.seed = cutmix_share, seed
        self.mixture: Mixture | None = None

    def craft(self, model: Classify, batch: Batch, moment: Moment) -> Tensor:
        """The mixed images; who is in them is remembered for ``terms``."""
        key = ("mixup", self.seed, moment.step, moment.slot)
        switch, quantile, x, y = keyed_uniforms(4, torch.zeros(1, dtype=torch.int64), *key)[0].tolist()
        partner = _partners(batch.index, *key)
        image, other = batch.image, batch.image[partner]
        if switch < self.cutmix_share:
            share = 1 - float(betaincinv(self.cutmix_alpha, self.cutmix_alpha, quantile))
            height, width = image.shape[-2:]
            top, bottom, left, right = _rectangle(height, width, share, x, y)
            mixed = image.clone()
            mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
            weight = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            weight = float(betaincinv(self.mixup_alpha, self.mixup_alpha, quantile))
            mixed = weight * image + (1 - weight) * other
        self.mixture = Mixture(partner, weight)
        return mixed

    def terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor | None) -> dict[str, Tensor]:
        assert adversarial is not None
        assert self.mixture is not None
        output, other = model(adversarial), batch.label[self.mixture.partner]
        own, theirs = ({**loss.loss(output, y), "accuracy": accuracy(output, y)} for y in (batch.label, other))
        weight = self.mixture.weight
        return {name: weight * own[name] + (1 - weight) * theirs[name] for name in own}


def _partners(index: Tensor, *key: int | str) -> Tensor:
    """Position of everyone's partner: the next in an order of the samples that is random but fixed by ids and key."""
    order = keyed_uniforms(1, index, *key, "partner").squeeze(1).argsort()
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner


def _rectangle(height: int, width: int, share: float, x: float, y: float) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle of the image's shape around a place anywhere, clipped to the image."""
    side = share**0.5
    tall, wide = int(height * side), int(width * side)
    top, left = int(y * height) - tall // 2, int(x * width) - wide // 2
    return max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)
