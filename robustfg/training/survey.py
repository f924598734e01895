"""Conducting a survey: every process looks at its share of the training set, then all conclude the same."""

from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from robustfg.attacks.runtime.eval_mode import attackable
from robustfg.core.precision import exact_arithmetic
from robustfg.core.types import Batch
from robustfg.losses import LossModule
from robustfg.training.gather import gathered


class Surveyed(Protocol):
    """What is needed of the data module."""

    def survey_dataloader(self) -> Iterable[Batch]:
        """The un-augmented training split, this process's share of it."""


def conduct(name: str, trainer: pl.Trainer, backbone: nn.Module, loss: LossModule) -> Mapping[str, float]:
    """Lets the loss module survey the training set, in eval mode and full fp32.

    Interrupted, it leaves the loss module as it was, so that a resumed run can conduct it from the beginning.

    Args:
        name: which survey.
        trainer: has the data module and the processes.
        backbone: gives the feature maps.
        loss: the loss module, which the survey changes.

    Returns:
        What is worth logging, by name.
    """
    survey, data = loss.survey(name), cast(Surveyed, trainer.datamodule)  # type: ignore[attr-defined]
    if dist.is_available() and dist.is_initialized():
        for buffer in (*backbone.buffers(), *loss.buffers()):  # as DDP does before it trains; else shards would differ
            dist.broadcast(buffer, 0)
    with attackable(nn.ModuleList([backbone, loss])), exact_arithmetic(), torch.no_grad():
        for batch in data.survey_dataloader():
            there = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            survey.see(backbone(there.image), there.label, there.index)
        findings = gathered(survey.findings())
        before = {key: value.clone() for key, value in loss.state_dict().items()}
        try:
            return survey.conclude(findings)
        except BaseException:
            loss.load_state_dict(before)
            raise
