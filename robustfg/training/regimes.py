"""Training regimes: how a batch becomes a loss. Each works with every loss module."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustfg.attacks import Attack
from robustfg.errors import UserError
from robustfg.losses import LossModule
from robustfg.types import Batch, Output

Classify = Callable[[Tensor], Output]


class Regime(ABC):
    """Turns a batch into a training loss."""

    @abstractmethod
    def __call__(self, model: Classify, loss: LossModule, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss under ``"loss"`` and everything worth logging under its own name.

        Args:
            model: the classifier in train mode.
            loss: its loss module.
            batch: the samples.
            step: global training step, which keys the random numbers of attacks.
        """


class Standard(Regime):
    """Clean images only."""

    def __call__(self, model: Classify, loss: LossModule, batch: Batch, step: int) -> dict[str, Tensor]:
        output = model(batch.image)
        return loss.loss(output, batch.label) | {"accuracy": _accuracy(output, batch.label)}


class Adversarial(Regime):
    """Adversarial training (Madry et al. 2018): the loss on attacked images, and on clean ones where wanted.

    Images are crafted in eval mode with frozen parameters. With several attacks, training steps take them in turn.
    From scratch, small networks on fine-grained classes hardly start to learn under the full attack; a few clean
    epochs and a growing radius get them going.

    Args:
        attack: attacks by name.
        clean_share: weight of the clean loss, in [0, 1); the attacked loss has the rest.
        clean_epochs: epochs on clean images at the beginning.
        ramp_epochs: epochs after them over which epsilon grows linearly from 0 to its full value.
    """

    def __init__(
        self,
        *,
        attack: Mapping[str, Attack],
        clean_share: float = 0.0,
        clean_epochs: float = 0.0,
        ramp_epochs: float = 0.0,
    ) -> None:
        if not attack:
            raise UserError("training.attack is empty; choose one, such as attack@training.attack=pgd7")
        if not 0 <= clean_share < 1:
            raise UserError(f"training.clean_share must be in [0, 1), got {clean_share}")
        for option, value in {"clean_epochs": clean_epochs, "ramp_epochs": ramp_epochs}.items():
            if value < 0:
                raise UserError(f"training.{option} must be >= 0, got {value}")
        self.attacks, self.clean_share = list(attack.values()), clean_share
        self.clean_epochs, self.ramp_epochs = clean_epochs, ramp_epochs

    def __call__(self, model: Classify, loss: LossModule, batch: Batch, step: int) -> dict[str, Tensor]:
        strength = self.strength(loss.epoch)
        if strength == 0:
            return Standard()(model, loss, batch, step)
        attack = weakened(self.attacks[step % len(self.attacks)], strength)
        with torch.autocast(batch.image.device.type, enabled=False):  # half precision would lose small gradients
            adversarial = attack(model, batch.image, batch.label, batch.index, draw=step)
        if self.clean_share == 0:
            output = model(adversarial)
            return loss.loss(output, batch.label) | {"adversarial_accuracy": _accuracy(output, batch.label)}
        clean, attacked = model(torch.cat([batch.image, adversarial])).chunk(2)
        clean_terms, terms = loss.loss(clean, batch.label), loss.loss(attacked, batch.label)
        mixed = {name: self.clean_share * clean_terms[name] + (1 - self.clean_share) * terms[name] for name in terms}
        return mixed | {
            "accuracy": _accuracy(clean, batch.label),
            "adversarial_accuracy": _accuracy(attacked, batch.label),
        }

    def strength(self, epoch: float) -> float:
        """Share of epsilon that is used after ``epoch`` epochs."""
        if epoch < self.clean_epochs:
            return 0.0
        return min(1.0, (epoch - self.clean_epochs) / self.ramp_epochs) if self.ramp_epochs else 1.0


def weakened(attack: Attack, strength: float) -> Attack:
    """The same attack with ``strength`` times its radius; step sizes given as a share of epsilon shrink with it."""
    if strength == 1:
        return attack
    return replace(attack, threat=replace(attack.threat, epsilon=strength * attack.threat.radius))


def _accuracy(output: Output, label: Tensor) -> Tensor:
    return (output.logits.argmax(1) == label).float().mean()
