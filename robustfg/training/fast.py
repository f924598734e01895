"""Fast adversarial training: one step from a random start, and a guard against its known failure."""

from collections.abc import Mapping

from pytorch_lightning import Callback

from robustfg.attacks import Attack
from robustfg.errors import UserError
from robustfg.training.adversarial import Adversarial
from robustfg.training.guard import Guard
from robustfg.training.watch import Watch


class Fast(Adversarial):
    """Fast adversarial training (Wong et al. 2020): a random start, one step of 1.25 epsilon, clipped to ball and box.

    Such training can fall into catastrophic overfitting: within a few steps the model defeats the single-step attack
    and loses all robustness to others. The guard sees it, brings the last good weights back, and stops training or
    goes on with a multi-step attack; see ``Guard``.

    Args:
        attack: the single-step attack under its name.
        guard: tells catastrophic overfitting; None to go on regardless.
        clean_share: weight of the clean loss, in [0, 1); the attacked loss has the rest.
        craft_in_train_mode: craft images with the batch's own statistics and dropout, as the authors' code does.
        clean_epochs: epochs on clean images at the beginning.
        ramp_epochs: epochs after them over which epsilon grows linearly from 0 to its full value.
    """

    def __init__(
        self,
        *,
        attack: Mapping[str, Attack],
        guard: Guard | None = None,
        clean_share: float = 0.0,
        craft_in_train_mode: bool = True,
        clean_epochs: float = 0.0,
        ramp_epochs: float = 0.0,
    ) -> None:
        super().__init__(
            attack=attack,
            clean_share=clean_share,
            craft_in_train_mode=craft_in_train_mode,
            clean_epochs=clean_epochs,
            ramp_epochs=ramp_epochs,
        )
        if len(attack) != 1:
            raise UserError(f"training.attack must be one attack, got {', '.join(attack)}")
        self.guard = guard

    def attack_at(self, step: int) -> Attack:
        if self.guard is not None and self.guard.triggered and self.guard.rescue is not None:
            return self.guard.rescue
        return self.attacks[0]

    def callbacks(self) -> list[Callback]:
        if self.guard is None:
            return []
        return [Watch(self.guard, self.attacks[0], lambda epoch: self.strength(epoch) > 0)]
