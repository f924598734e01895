"""MART: misclassified samples get the most of the regularisation."""

from collections.abc import Mapping

from torch import Tensor

from robustfg.attacks import Attack
from robustfg.errors import UserError
from robustfg.losses import LossModule
from robustfg.training.adversarial import Adversarial
from robustfg.training.divergence import divergence, log_probabilities
from robustfg.training.regime import Classify, accuracy
from robustfg.types import Batch


class Mart(Adversarial):
    """MART (Wang et al. 2020): BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), averaged over the batch.

    The boosted cross-entropy BCE is the cross-entropy of the true class and -log(1 - max_{k != y} p_k(x')). Its first
    half is here the loss module's own loss on the attacked images, so that gm keeps its margin and likelihood; p is the
    softmax of the deciding logits. Gradients flow through every p, also through the weight 1 - p_y(x), and clean and
    attacked images go through the network one after the other, as in the authors' release.

    Args:
        attack: attacks by name; training steps take them in turn.
        beta: weight of the divergence, lambda in the paper.
        craft_in_train_mode: craft images with the batch's own statistics and dropout instead of in eval mode.
        clean_epochs: epochs on clean images at the beginning.
        ramp_epochs: epochs after them over which epsilon grows linearly from 0 to its full value.
    """

    def __init__(
        self,
        *,
        attack: Mapping[str, Attack],
        beta: float = 5.0,
        craft_in_train_mode: bool = False,
        clean_epochs: float = 0.0,
        ramp_epochs: float = 0.0,
    ) -> None:
        super().__init__(
            attack=attack,
            craft_in_train_mode=craft_in_train_mode,
            clean_epochs=clean_epochs,
            ramp_epochs=ramp_epochs,
        )
        if not beta >= 0:
            raise UserError(f"training.beta must be >= 0, got {beta}")
        self.beta = beta

    def robust_terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        clean, attacked = model(batch.image), model(adversarial)
        terms, label = loss.loss(attacked, batch.label), batch.label[:, None]
        log_clean, log_attacked = log_probabilities(clean), log_probabilities(attacked)
        runner_up = log_attacked.scatter(1, label, float("-inf")).argmax(1, keepdim=True)
        # 1 - p_k is the sum of all other probabilities; added up in logarithms it does not vanish where p_k nears 1.
        boost = -log_attacked.scatter(1, runner_up, float("-inf")).logsumexp(1).mean()
        doubt = 1 - log_clean.gather(1, label).squeeze(1).exp()
        drift = (divergence(log_clean, log_attacked) * doubt).mean()
        return terms | {
            "loss": terms["loss"] + boost + self.beta * drift,
            "boost": boost,
            "divergence": drift,
            "accuracy": accuracy(clean, batch.label),
            "adversarial_accuracy": accuracy(attacked, batch.label),
        }
