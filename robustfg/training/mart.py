"""MART: misclassified samples get the most of the regularisation."""

from dataclasses import dataclass

from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.crafted import Crafted
from robustfg.training.divergence import divergence, log_probabilities
from robustfg.training.regime import Classify, accuracy


@dataclass(kw_only=True, eq=False)
class Mart(Crafted):
    """MART (Wang et al. 2020): BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), averaged over the batch.

    The boosted cross-entropy BCE is the cross-entropy of the true class and -log(1 - max_{k != y} p_k(x')). Its first
    half is here the loss module's own loss on the attacked images, so that gm keeps its margin and likelihood; p is the
    softmax of the deciding logits. Gradients flow through every p, also through the weight 1 - p_y(x), and clean and
    attacked images go through the network one after the other, as in the authors' release.

    Args:
        beta: weight of the divergence, lambda in the paper.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise UserError(f"training.beta must be >= 0, got {self.beta}")

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
