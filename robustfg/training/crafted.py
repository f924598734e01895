"""What the regimes have in common whose images come from attacks of our own."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from robustfg.attacks import Attack, Backtracking, GradientAttack
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.training.attacked import Attacked
from robustfg.training.buffers import as_in_training
from robustfg.training.regime import Classify, Moment


@dataclass(kw_only=True, eq=False)
class Crafted(Attacked):
    """Images are crafted with frozen parameters, and batch norm's running averages see nothing of it.

    Args:
        attack: attacks by name; training steps take them in turn.
        craft_in_train_mode: craft images with the batch's own statistics and dropout, as they will be trained on,
            instead of in eval mode. The attack must show the model whole batches, so no sample may leave early.
    """

    attack: Mapping[str, Attack]
    craft_in_train_mode: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attack:
            raise UserError("training.attack is empty; choose one, such as attack@training.attack=pgd7")
        for name, attack in self.attack.items():
            self.refuse_unfit(f"training.attack.{name}", attack)

    def refuse_unfit(self, option: str, attack: Attack) -> None:
        """Raises ``UserError`` if an attack cannot do what the other options ask of it.

        Args:
            option: the attack's place in the config, for the message.
            attack: the attack.
        """
        if self.craft_in_train_mode and not _shows_whole_batches(attack):
            raise UserError(
                f"training.craft_in_train_mode=true uses the statistics of whole batches: {option} must be a gradient "
                "attack with last_iterate=true, no targets and no engine.fixed_batch"
            )
        if self.ramp_epochs:
            try:
                weakened(attack, 0.0)
            except UserError as error:
                raise UserError(f"{option} cannot be weakened, set training.ramp_epochs=0: {error}") from error

    def attacked(self, model: Classify, batch: Batch, moment: Moment, strength: float) -> Tensor:
        attack = weakened(self.attack_at(moment.step), strength)
        with as_in_training(model) if self.craft_in_train_mode else nullcontext(model) as attacked:
            return attack(attacked, batch.image, batch.label, batch.index, draw=moment.step)

    def attack_at(self, step: int) -> Attack:
        """The attack whose turn it is."""
        attacks = list(self.attack.values())
        return attacks[step % len(attacks)]


def _shows_whole_batches(attack: Attack) -> bool:
    return (
        isinstance(attack, GradientAttack | Backtracking)
        and attack.last_iterate
        and attack.targets is None
        and attack.engine.fixed_batch is None
    )


def weakened(attack: Attack, strength: float) -> Attack:
    """The same attack with ``strength`` times its radius; step sizes given as a share of epsilon shrink with it."""
    return attack if strength == 1 else attack.within(attack.threat.scaled(strength))
