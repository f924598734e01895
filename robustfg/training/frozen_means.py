"""The means of a head that decides by distance, and how they are kept as they are."""

from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from robustfg.core.errors import UserError
from robustfg.losses import LossModule


def means_of(loss: LossModule) -> Tensor:
    """The means ``(K, D)`` of a head that decides by distance."""
    means = getattr(loss, "means", None)
    if not isinstance(means, Tensor):
        raise UserError(
            f"training=mcat needs a loss that decides by distance to its means, such as loss=gm, loss=mmc or "
            f"loss=mmlda, not {type(loss).__name__}"
        )
    return means


class FrozenMeans(pl.Callback):
    """Means keep their values while ``frozen`` says so of the epoch: they are given no step, momentum or weight decay.

    The gradient is taken away before the optimizer sees it, so that nothing changes for DDP.
    """

    def __init__(self, frozen: Callable[[float], bool]) -> None:
        self.frozen = frozen

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        loss = pl_module.loss
        assert isinstance(loss, LossModule)
        means = means_of(loss)
        if isinstance(means, nn.Parameter) and self.frozen(loss.epoch):
            means.grad = None
