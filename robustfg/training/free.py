"""Free adversarial training: the backward pass that trains the weights also attacks the image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustfg.attacks import Linf
from robustfg.attacks.runtime.validation import classes_of
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.attacked import Attacked
from robustfg.training.regime import Classify, Moment, accuracy


@dataclass(kw_only=True, eq=False)
class Free(Attacked):
    """Free adversarial training (Shafahi et al. 2019, algorithm 1), l-inf.

    Every batch is trained on ``replays`` times, with an optimizer step each. The gradient of one backward pass updates
    both the weights and the perturbation, delta <- clip(delta + epsilon sign(g), -epsilon, epsilon), which goes on to
    the next replay and from the last replay to the next batch. One epoch costs as much as ``replays`` ordinary ones.
    Under gradient accumulation all batches of an optimizer step are replayed together, each with a perturbation of its
    own. Batches of clean epochs are replayed, too. Checkpoints hold the perturbation of every process.

    Args:
        epsilon: the radius in pixel units.
        replays: optimizer steps on every batch, m in the paper.
    """

    epsilon: str | float
    replays: int = 8
    noise: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replays < 1:
            raise UserError(f"training.replays must be >= 1, got {self.replays}")
        self.radius = Linf(epsilon=self.epsilon).radius

    def attacked(self, model: Classify, batch: Batch, moment: Moment, strength: float) -> Tensor:
        classes_of(*batch)
        radius, noise = strength * self.radius, self._carried(batch.image, moment.slot)
        image = Linf(epsilon=radius).project(batch.image + noise, batch.image).requires_grad_(True)

        def ascend(gradient: Tensor) -> None:
            moved = noise + radius * torch.nan_to_num(gradient).sign()
            self.noise[moment.slot] = moved.clamp(-radius, radius)

        image.register_hook(ascend)  # type: ignore[no-untyped-call]  # runs within the backward pass of the training step
        return image

    def _carried(self, image: Tensor, slot: int) -> Tensor:
        """The perturbation of the last backward pass, position by position; zero at first."""
        noise = self.noise.get(slot)
        if noise is None or noise.shape[1:] != image.shape[1:] or len(noise) < len(image):
            return torch.zeros_like(image)
        return noise[: len(image)].to(image)

    def robust_terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor) -> dict[str, Tensor]:
        output = model(adversarial)
        return loss.loss(output, batch.label) | {"adversarial_accuracy": accuracy(output, batch.label)}

    def state_dict(self) -> dict[str, Any]:
        return {"noise": {slot: noise.cpu() for slot, noise in self.noise.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.noise = dict(state["noise"])
