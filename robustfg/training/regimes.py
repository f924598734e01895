"""Training regimes: how a batch becomes a loss. Each works with every loss module."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

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

    Args:
        attack: attacks by name.
        clean_share: weight of the clean loss, in [0, 1); the attacked loss has the rest.
    """

    def __init__(self, *, attack: Mapping[str, Attack], clean_share: float = 0.0) -> None:
        if not attack:
            raise UserError("training.attack is empty; choose one, such as attack@training.attack=pgd7")
        if not 0 <= clean_share < 1:
            raise UserError(f"training.clean_share must be in [0, 1), got {clean_share}")
        self.attacks, self.clean_share = list(attack.values()), clean_share

    def __call__(self, model: Classify, loss: LossModule, batch: Batch, step: int) -> dict[str, Tensor]:
        attack = self.attacks[step % len(self.attacks)]
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


def _accuracy(output: Output, label: Tensor) -> Tensor:
    return (output.logits.argmax(1) == label).float().mean()
