"""What all regimes that attack have in common: how the attack sets in."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.regime import Classify, Moment, Regime, Standard


@dataclass(kw_only=True, eq=False)
class Attacked(Regime):
    """Clean epochs, then a growing radius, then the full attack.

    From scratch, small networks on fine-grained classes hardly start to learn under the full attack; a few clean
    epochs and a growing radius get them going.

    Args:
        clean_epochs: epochs on clean images at the beginning.
        ramp_epochs: epochs after them over which epsilon grows linearly from 0 to its full value.
    """

    clean_epochs: float = 0.0
    ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        for option, value in {"clean_epochs": self.clean_epochs, "ramp_epochs": self.ramp_epochs}.items():
            if not value >= 0:
                raise UserError(f"training.{option} must be >= 0, got {value}")

    def refuse_epochs(self, max_epochs: int) -> None:
        if self.clean_epochs >= max_epochs:
            raise UserError(
                f"training.clean_epochs={self.clean_epochs:g} leaves no epoch with attacks in trainer.max_epochs="
                f"{max_epochs}; set training.clean_epochs=0 training.ramp_epochs=0, or train longer"
            )
        if self.clean_epochs + self.ramp_epochs > max_epochs:
            raise UserError(
                f"training.ramp_epochs={self.ramp_epochs:g} after {self.clean_epochs:g} clean epochs ends beyond "
                f"trainer.max_epochs={max_epochs}: the full epsilon would never be trained on; shorten both, or train "
                "longer"
            )

    def craft(self, model: Classify, batch: Batch, moment: Moment) -> Tensor | None:
        strength = self.strength(moment.epoch)
        if strength == 0:
            return None
        with torch.autocast(batch.image.device.type, enabled=False):  # half precision would lose small gradients
            return self.attacked(model, batch, moment, strength)

    def terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor | None) -> dict[str, Tensor]:
        if adversarial is None:
            return Standard().terms(model, loss, batch, None)
        return self.robust_terms(model, loss, batch, adversarial)

    @abstractmethod
    def attacked(self, model: Classify, batch: Batch, moment: Moment, strength: float) -> Tensor:
        """Adversarial images within ``strength`` times the full radius, ``(B, C, H, W)``."""

    @abstractmethod
    def robust_terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        """The loss and its terms once the attack has set in."""

    def strength(self, epoch: float) -> float:
        """Share of epsilon that is used after ``epoch`` epochs."""
        if epoch < self.clean_epochs:
            return 0.0
        return min(1.0, (epoch - self.clean_epochs) / self.ramp_epochs) if self.ramp_epochs else 1.0
