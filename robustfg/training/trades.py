"""TRADES: a clean loss, and predictions that stay the same around every image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks import Rigid, Threat
from robustfg.attacks.freeze import attackable
from robustfg.attacks.randomness import keyed_normals
from robustfg.attacks.threat import step_length
from robustfg.errors import UserError
from robustfg.losses import LossModule
from robustfg.training.attacked import Attacked
from robustfg.training.divergence import divergence, log_probabilities
from robustfg.training.regime import Classify, Moment, accuracy
from robustfg.types import Batch

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
        key = self.seed, "trades", moment.step
        threat = self.threat.scaled(strength).placed(batch.image, batch.index, *key)
        size = step_length(self.step_size, threat.reach)
        with attackable(model):
            clean = batch.image.detach().clone()
            noise = keyed_normals(clean[0].numel(), batch.index, *key)
            current = threat.project(clean + START * noise.view_as(clean).to(clean), clean)
            with torch.no_grad():
                reference = log_probabilities(model(clean))
            for _ in range(self.steps):
                current.requires_grad_(True)
                value = divergence(reference, log_probabilities(model(current))).sum()
                (gradient,) = torch.autograd.grad(value, current)
                current = threat.project(current.detach() + size * threat.steepest(gradient), clean)
        return current

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
