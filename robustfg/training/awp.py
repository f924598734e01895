"""Adversarial weight perturbation, on top of any other regime."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.func import functional_call

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.buffers import unchanged_buffers
from robustfg.training.regime import Classify, Moment, Regime


class WeightPerturbation(Regime):
    """AWP (Wu et al. 2020): every step minimises the loss at weights that were moved to make it worse.

    Images are crafted at the present weights w by the regime below. Every weight tensor w_l is then moved once along
    the gradient g_l of the regime's loss on them, by v_l = gamma ||w_l|| g_l / ||g_l||, and the step's gradient is
    taken at w + v. Tensors of one dimension (biases, batch norm) stay, as in the authors' release; so do those whose
    gradient is not finite.

    The weights themselves are never changed: the classifier is called with w + v in their place, so nothing needs to be
    put back, whatever happens in between. All processes of a distributed run average g before they move. The search for
    v runs in full precision, and batch norm's running averages do not see it.

    Args:
        regime: the regime below.
        gamma: size of the perturbation relative to the weights.
        warmup_epochs: epochs of the regime below alone at the beginning; so are its own clean epochs.
    """

    def __init__(self, *, regime: Regime, gamma: float = 5e-3, warmup_epochs: float = 0.0) -> None:
        for option, value in {"gamma": gamma, "warmup_epochs": warmup_epochs}.items():
            if not value >= 0:
                raise UserError(f"training.{option} must be >= 0, got {value}")
        self.regime, self.gamma, self.warmup_epochs = regime, gamma, warmup_epochs
        self.replays = regime.replays

    def refuse_loss(self, loss: LossModule) -> None:
        self.regime.refuse_loss(loss)

    def refuse_epochs(self, max_epochs: int) -> None:
        self.regime.refuse_epochs(max_epochs)
        if self.warmup_epochs >= max_epochs:
            raise UserError(
                f"training.warmup_epochs={self.warmup_epochs:g} leaves nothing of trainer.max_epochs={max_epochs}"
            )

    def craft(self, model: Classify, batch: Batch, moment: Moment) -> Tensor | None:
        return self.regime.craft(model, batch, moment)

    def terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor | None) -> dict[str, Tensor]:
        if adversarial is None or loss.epoch < self.warmup_epochs:
            return self.regime.terms(model, loss, batch, adversarial)
        scored = _Scored(self.regime, model, loss)
        with torch.autocast(batch.image.device.type, enabled=False), unchanged_buffers(scored):
            moves = self._moves(scored, scored(batch, adversarial)["loss"])
        terms: dict[str, Tensor] = functional_call(scored, moves, (batch, adversarial))
        return terms

    def _moves(self, scored: nn.Module, value: Tensor) -> dict[str, Tensor]:
        """Moved weights w + v by name, for those that move. Their gradient passes through to w unchanged."""
        weights = {name: w for name, w in scored.named_parameters() if w.requires_grad and w.dim() > 1}
        if not weights:
            return {}
        found = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
        moves = {}
        for (name, weight), gradient in zip(weights.items(), _averaged(found), strict=True):
            norm = gradient.norm()
            direction = torch.where((norm > 0) & norm.isfinite(), gradient / norm, 0.0)
            moves[name] = weight + self.gamma * weight.detach().norm() * direction
        return moves

    def callbacks(self) -> list[Callback]:
        return self.regime.callbacks()

    def state_dict(self) -> dict[str, Any]:
        return self.regime.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.regime.load_state_dict(state)


class _Scored(nn.Module):
    """A regime's loss as a function of all parameters, also of those that a loss module uses outside ``forward``."""

    def __init__(self, regime: Regime, model: Classify, loss: LossModule) -> None:
        super().__init__()
        self.regime, self.model = regime, model
        self.loss = (loss,)  # not a second time among the modules: functional_call would not put its weights back

    def forward(self, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        return self.regime.terms(self.model, *self.loss, batch, adversarial)


def _averaged(gradients: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients averaged over all processes, which hold equally large batches, so that all move alike."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat / dist.get_world_size(), [gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
