"""Fast adversarial training: one step from a random start, and a guard against its known failure."""

from dataclasses import dataclass

from pytorch_lightning import Callback

from robustfg.attacks import Attack
from robustfg.core.errors import UserError
from robustfg.training.adversarial import Adversarial
from robustfg.training.guard import Guard
from robustfg.training.watch import Watch


@dataclass(kw_only=True, eq=False)
class Fast(Adversarial):
    """Fast adversarial training (Wong et al. 2020): a random start, one step of 1.25 epsilon, clipped to ball and box.

    Such training can fall into catastrophic overfitting: within a few steps the model defeats the single-step attack
    and loses all robustness to others. The guard sees it, brings the last good weights back, and stops training or
    goes on with a multi-step attack; see ``Guard``.

    Args:
        guard: tells catastrophic overfitting; None to go on regardless.
        craft_in_train_mode: as the authors' code does.
    """

    guard: Guard | None = None
    craft_in_train_mode: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.attack) != 1:
            raise UserError(f"training.attack must be one attack, got {', '.join(self.attack)}")
        if self.guard is not None and self.guard.rescue is not None:
            self.refuse_unfit(f"training.guard.rescue.{self.guard.rescue.name}", self.guard.rescue)

    def attack_at(self, step: int) -> Attack:
        if self.guard is not None and self.guard.triggered and self.guard.rescue is not None:
            return self.guard.rescue
        return super().attack_at(step)

    def callbacks(self) -> list[Callback]:
        if self.guard is None:
            return []
        return [Watch(self.guard, super().attack_at(0), lambda epoch: self.strength(epoch) > 0)]
