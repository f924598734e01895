"""Adversarial training on any attack."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.crafted import Crafted
from robustfg.training.regime import Classify, accuracy


@dataclass(kw_only=True, eq=False)
class Adversarial(Crafted):
    """Adversarial training (Madry et al. 2018): the loss on attacked images, and on clean ones where wanted.

    Args:
        clean_share: weight of the clean loss, in [0, 1); the attacked loss has the rest.
    """

    clean_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clean_share < 1:
            raise UserError(f"training.clean_share must be in [0, 1), got {self.clean_share}")

    def robust_terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        if self.clean_share == 0:
            output = model(adversarial)
            return loss.loss(output, batch.label) | {"adversarial_accuracy": accuracy(output, batch.label)}
        clean, attacked = model(torch.cat([batch.image, adversarial])).chunk(2)
        clean_terms, terms = loss.loss(clean, batch.label), loss.loss(attacked, batch.label)
        mixed = {name: self.clean_share * clean_terms[name] + (1 - self.clean_share) * terms[name] for name in terms}
        return mixed | {
            "accuracy": accuracy(clean, batch.label),
            "adversarial_accuracy": accuracy(attacked, batch.label),
        }
