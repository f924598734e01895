"""TRADES: a clean loss, and predictions that stay the same around every image."""

from dataclasses import dataclass, field

from torch import Tensor

from robustfg.attacks import Engine, GradientAttack, Steepest, Threat
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.black_box.spatial import Rigid
from robustfg.attacks.objectives.logits import KullbackLeibler
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.base import step_length
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.attacked import Attacked
from robustfg.training.divergence import divergence, log_probabilities
from robustfg.training.regime import Classify, Moment, accuracy

START = 0.001
"""Standard deviation of the noise that crafting starts with: at the clean image the divergence has no gradient."""


@dataclass(kw_only=True, eq=False)
class Trades(Attacked):
    """TRADES (Zhang et al. 2019): L(x, y) + beta KL(p(x) || p(x')), where x' maximises that divergence in the ball.

    L is the loss module's own loss on clean images, where the paper has cross-entropy; p is the softmax of the deciding
    logits, without any margin. The gradient flows through p(x) and p(x') alike, and clean and attacked images go
    through the network one after the other, as in the authors' release. Images are crafted in eval mode.

    Args:
        threat: the allowed images.
        beta: weight of the divergence, 1/lambda in the paper.
        steps: gradient steps while crafting.
        step_size: their length, in pixel units or as a share of epsilon.
        seed: chooses the noise at the start, together with training step and sample id.
    """

    threat: Threat
    beta: float = 6.0
    steps: int = 10
    step_size: str | float = "0.226*eps"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise UserError(f"training.beta must be >= 0, got {self.beta}")
        if self.steps < 1:
            raise UserError(f"training.steps must be >= 1, got {self.steps}")
        if isinstance(self.threat, Rigid):
            raise UserError(
                "training.threat: trades takes gradient steps, which the rigid threat has not; choose "
                "training=adversarial attack@training.attack=spatial"
            )
        step_length(self.step_size, self.threat.reach)

    def attacked(self, model: Classify, batch: Batch, moment: Moment, strength: float) -> Tensor:
        attack = _Drift(
            threat=self.threat.scaled(strength), step=Steepest(size=self.step_size), steps=self.steps, seed=self.seed
        )
        return attack(model, batch.image, batch.label, batch.index, draw=moment.step)

    def robust_terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        clean, attacked = model(batch.image), model(adversarial)
        terms = loss.loss(clean, batch.label)
        drift = divergence(log_probabilities(clean), log_probabilities(attacked)).mean()
        return terms | {
            "loss": terms["loss"] + self.beta * drift,
            "divergence": drift,
            "accuracy": accuracy(clean, batch.label),
            "adversarial_accuracy": accuracy(attacked, batch.label),
        }


@dataclass(frozen=True, kw_only=True)
class _Drift(GradientAttack):
    """Away from the clean prediction, from the clean image with a little noise; what is fooled goes on."""

    objective: KullbackLeibler = field(default_factory=KullbackLeibler)
    random_start: bool = True
    last_iterate: bool = True
    engine: Engine = field(default_factory=lambda: Engine(fold=False))  # weights change at every training step
    name: str = "trades"

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        super().search(batch, _Draws(draws.seed, draws.attack, draws.draw, restart), restart)

    def random_image(self, batch: ActiveBatch, draws: Draws) -> Tensor:
        clean = batch.clean
        noise = draws.normals(clean[0].numel(), batch.index).view_as(clean).to(clean)
        return self.threat.placed(clean, batch.index, *draws.key).project(clean + START * noise, clean)


class _Draws(Draws):
    """There is one restart, which keys nothing."""

    @property
    def key(self) -> tuple[int | str, ...]:
        return self.seed, self.attack, self.draw
