"""Adversarial training on any attack."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from robustfg.attacks import Attack
from robustfg.errors import UserError
from robustfg.losses import LossModule
from robustfg.training.attacked import Attacked, weakened
from robustfg.training.buffers import as_in_training
from robustfg.training.regime import Classify, Moment, accuracy
from robustfg.types import Batch


class Adversarial(Attacked):
    """Adversarial training (Madry et al. 2018): the loss on attacked images, and on clean ones where wanted.

    Images are crafted with frozen parameters, and batch norm's running averages never see what is crafted on the way.
    With several attacks, training steps take them in turn.

    Args:
        attack: attacks by name.
        clean_share: weight of the clean loss, in [0, 1); the attacked loss has the rest.
        craft_in_train_mode: craft images with the batch's own statistics and dropout, as they will be trained on,
            instead of in eval mode.
        clean_epochs: epochs on clean images at the beginning.
        ramp_epochs: epochs after them over which epsilon grows linearly from 0 to its full value.
    """

    def __init__(
        self,
        *,
        attack: Mapping[str, Attack],
        clean_share: float = 0.0,
        craft_in_train_mode: bool = False,
        clean_epochs: float = 0.0,
        ramp_epochs: float = 0.0,
    ) -> None:
        super().__init__(clean_epochs=clean_epochs, ramp_epochs=ramp_epochs)
        if not attack:
            raise UserError("training.attack is empty; choose one, such as attack@training.attack=pgd7")
        if not 0 <= clean_share < 1:
            raise UserError(f"training.clean_share must be in [0, 1), got {clean_share}")
        self.attacks, self.clean_share = list(attack.values()), clean_share
        self.craft_in_train_mode = craft_in_train_mode

    def attacked(self, model: Classify, batch: Batch, moment: Moment, strength: float) -> Tensor:
        attack = weakened(self.attack_at(moment.step), strength)
        with as_in_training(model) if self.craft_in_train_mode else nullcontext(model) as victim:
            return attack(victim, batch.image, batch.label, batch.index, draw=moment.step)

    def attack_at(self, step: int) -> Attack:
        """The attack whose turn it is."""
        return self.attacks[step % len(self.attacks)]

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
