"""What CCAT and MCAT have in common: half of every batch is attacked, and its labels fade with the distance moved."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks import Attack
from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output
from robustfg.losses import LossModule
from robustfg.training.crafted import Crafted
from robustfg.training.regime import Classify, Moment, accuracy


class Half(NamedTuple):
    """A part of a batch and what the model says of it."""

    output: Output
    label: Tensor
    """``(b,)``."""
    fading: Tensor
    """``(b,)``, from 0 for a clean image to 1 at the border of the threat model."""


def first_half(batch: Batch) -> Batch:
    """The samples that stay clean; one more than half where their number is odd."""
    return Batch(*(part[: (len(batch.label) + 1) // 2] for part in batch))


def second_half(batch: Batch) -> Batch:
    """The samples that are attacked."""
    return Batch(*(part[(len(batch.label) + 1) // 2 :] for part in batch))


@dataclass(kw_only=True, eq=False)
class Halves(Crafted):
    """The first half of a batch is clean, the second attacked; both go through the network together, as released.

    Every sample counts alike. What an attacked image should be taken for depends on how far it was moved: its class
    fades by w = 1 - (1 - min(1, ||delta|| / epsilon))^rho, in the threat model's norm and with its full epsilon.

    Args:
        rho: how fast; 10 in both releases.
    """

    rho: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.attack) != 1:
            raise UserError(f"training.attack must be one attack, got {', '.join(self.attack)}")
        if not self.rho > 0:
            raise UserError(f"training.rho must be > 0, got {self.rho}")
        threat = self.only_attack.threat
        if not (threat.additive and threat.radius > 0):
            raise UserError(
                f"training.attack: how far an image was moved is told as a share of epsilon, which must be > 0; "
                f"threat {threat.norm} has {threat.epsilon}"
            )

    @property
    def only_attack(self) -> Attack:
        """The attack; there is one."""
        return self.attack_at(0)

    def craft(self, model: Classify, batch: Batch, moment: Moment) -> Tensor | None:
        return super().craft(model, batch, moment) if len(batch.label) > 1 else None

    def attacked(self, model: Classify, batch: Batch, moment: Moment, strength: float) -> Tensor:
        """The clean images of the first half and adversarial ones of the second."""
        found = super().attacked(model, second_half(batch), moment, strength)
        return torch.cat([first_half(batch).image, found])

    def robust_terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        output, count = model(adversarial), len(first_half(batch).label)
        fading = self.fading(adversarial - batch.image).to(adversarial.dtype)
        clean = Half(output.map(lambda value: value[:count]), batch.label[:count], fading[:count])
        attacked = Half(output.map(lambda value: value[count:]), batch.label[count:], fading[count:])
        terms, robust = self.clean_terms(loss, clean), self.attacked_loss(loss, attacked)
        share = count / len(batch.label)
        return terms | {
            "loss": share * terms["loss"] + robust.sum() / len(batch.label),
            "adversarial": robust.mean(),
            "fading": attacked.fading.mean(),
            "accuracy": accuracy(clean.output, clean.label),
            "adversarial_accuracy": accuracy(attacked.output, attacked.label),
        }

    def fading(self, perturbation: Tensor) -> Tensor:
        """W of every perturbation, ``(B,)`` float64."""
        threat = self.only_attack.threat
        moved = (threat.size(perturbation.detach()) / threat.radius).clamp_max(1)
        return 1 - (1 - moved) ** self.rho

    def clean_terms(self, loss: LossModule, half: Half) -> dict[str, Tensor]:
        """The mean loss on clean images and its terms."""
        return loss.loss(half.output, half.label)

    @abstractmethod
    def attacked_loss(self, loss: LossModule, half: Half) -> Tensor:
        """The loss on every attacked image, ``(b,)``."""
