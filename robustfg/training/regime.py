"""The interface of every training regime, and the plainest one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Callback
from torch import Tensor

from robustfg.core.types import Batch, Output
from robustfg.losses import LossModule

Classify = Callable[[Tensor], Output]


@dataclass(frozen=True)
class Moment:
    """Where training stands."""

    step: int
    """Global training step, which keys the random numbers of attacks."""
    epoch: float
    """Progress in epochs; 2.5 is the middle of the third."""
    slot: int = 0
    """Position among the batches whose gradients are accumulated into one optimizer step."""


class Regime(ABC):
    """Turns a batch into a training loss, in two parts: the images to train on, then the loss on them.

    Attributes:
        replays: optimizer steps taken on every batch.
    """

    replays: int = 1

    def __call__(self, model: Classify, loss: LossModule, batch: Batch, step: int, slot: int = 0) -> dict[str, Tensor]:
        """The loss under ``"loss"`` and everything worth logging under its own name.

        Args:
            model: the classifier in train mode.
            loss: its loss module.
            batch: the samples.
            step: global training step.
            slot: position of the batch among those of one optimizer step.
        """
        return self.terms(model, loss, batch, self.craft(model, batch, Moment(step, loss.epoch, slot)))

    def craft(self, model: Classify, batch: Batch, moment: Moment) -> Tensor | None:
        """Adversarial images ``(B, C, H, W)``; None to train on the clean ones alone."""
        return None

    @abstractmethod
    def terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor | None) -> dict[str, Tensor]:
        """The loss and its terms on what ``craft`` gave; may be called several times on it."""

    def refuse_loss(self, loss: LossModule) -> None:
        """Raises ``UserError`` where the regime cannot train this loss module."""
        del loss  # most can train any

    def refuse_epochs(self, max_epochs: int) -> None:
        """Raises ``UserError`` where so many epochs leave the regime nothing to do."""
        del max_epochs  # most work from the first step on

    def callbacks(self) -> list[Callback]:
        """What the regime needs to do between training steps."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What this process must keep in a checkpoint for a resumed run to go on as if nothing had happened."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        del state  # nothing was kept


class Standard(Regime):
    """Clean images only."""

    def terms(self, model: Classify, loss: LossModule, batch: Batch, adversarial: Tensor | None) -> dict[str, Tensor]:
        output = model(batch.image)
        return loss.loss(output, batch.label) | {"accuracy": accuracy(output, batch.label)}


def accuracy(output: Output, label: Tensor) -> Tensor:
    """Share of right predictions, a scalar."""
    return (output.logits.argmax(1) == label).float().mean()
