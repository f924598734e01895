"""Confidence-calibrated adversarial training: the further an image was moved, the less sure the model should be."""

from dataclasses import dataclass

from torch import Tensor

from robustfg.losses import LossModule
from robustfg.training.divergence import log_probabilities
from robustfg.training.halves import Half, Halves


@dataclass(kw_only=True, eq=False)
class Ccat(Halves):
    """CCAT (Stutz et al. 2020), for detection by confidence: uniform predictions at the border of the threat model.

    On attacked images the loss is the cross-entropy of the deciding logits with the target
    (1 - w) onehot(y) + w uniform. On clean images, where w = 0, it is the loss module's own, which is the same
    cross-entropy for softmax. Margins, pulls to centres and all other terms of a loss module hold on clean images only:
    they say that an image is of its class, which an attacked one is told to leave. With gm the likelihood is therefore
    that of clean features alone, and with heads of several logits those that decide are calibrated.
    """

    def attacked_loss(self, loss: LossModule, half: Half) -> Tensor:
        log_probability = log_probabilities(half.output)
        own = log_probability.gather(1, half.label[:, None]).squeeze(1)
        return -(1 - half.fading) * own - half.fading * log_probability.mean(1)
