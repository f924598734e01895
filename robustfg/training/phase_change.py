"""What happens between two phases, and only once, however often the run is interrupted."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from robustfg.core.errors import UserError
from robustfg.losses import LossModule
from robustfg.training.callbacks import WarmedEma
from robustfg.training.phases import BACKBONE, Phase, Phases, parameter_groups
from robustfg.training.survey import conduct
from robustfg.training.watch import Watch


class PhaseChange(pl.Callback):
    """Brings every phase into effect before its first step: surveys, then optimizer state, freezing, coefficients.

    It acts before the first batch that a process trains on in a phase, not at the start of an epoch, because Lightning
    leaves that hook out where a checkpoint is resumed. What a checkpoint tells to have been done is not done again.
    A weight average begins anew with every phase, and a guard's last good weights become the phase's first. Results of
    surveys are logged as ``survey/<survey>/<name>``.

    Args:
        phases: of the whole run.
        backbone: the classifier's backbone.
        loss: its loss module.

    Attributes:
        plan: the phases over this run's ``trainer.max_epochs``.
        present: the phase in effect in this process; None before the first batch.
        begun: phases begun since the run's start, earlier processes included.
        surveyed: surveys concluded before the next of them.
    """

    def __init__(self, *, phases: Phases, backbone: nn.Module, loss: LossModule) -> None:
        self.plan, self.backbone, self.loss = phases, backbone, loss
        self.coefficients = dict(loss.coefficients)
        self.present: int | None = None
        self.begun = self.surveyed = 0
        self.resumed_spans: list[int] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and self.plan.freeze and isinstance(trainer.strategy, DDPStrategy):
            # Only now is it known which strategy "auto" has become. DDP would wait for the gradients of frozen groups.
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.max_epochs is not None  # the classifier has refused it
        self.plan = self.plan.stretched(trainer.max_epochs)
        if self.resumed_spans not in (None, list(self.plan.spans)):
            raise UserError(
                f"trainer.max_epochs={trainer.max_epochs} gives the phases {list(self.plan.spans)} epochs, but the run "
                f"was begun with {self.resumed_spans}; choose another run_name"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        index = self.plan.index(trainer.current_epoch)
        if index == self.present:
            return
        phase, (optimizer,) = self.plan.phases[index], trainer.optimizers
        if index >= self.begun:
            self._survey(phase, trainer, pl_module)
            if phase.fresh_optimizer:
                optimizer.state.clear()
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WarmedEma | Watch):
                    callback.restart(trainer, pl_module)
            self.begun, self.surveyed = index + 1, 0
        self._apply(phase, optimizer)
        self.present = index

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.requires_grad_(True)

    def _survey(self, phase: Phase, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name in phase.surveys[self.surveyed :]:
            shapes = {parameter: parameter.shape for parameter in pl_module.parameters()}
            found = conduct(name, trainer, self.backbone, self.loss)
            self.surveyed += 1
            if resized := [parameter for parameter, shape in shapes.items() if parameter.shape != shape]:
                for parameter in resized:
                    trainer.optimizers[0].state.pop(parameter, None)
                _wrap_again(trainer, pl_module)
            told = {f"survey/{name}/{key}": value for key, value in found.items()}
            for logger in trainer.loggers if told else ():
                logger.log_metrics({"epoch": trainer.current_epoch, **told}, step=trainer.global_step)

    def _apply(self, phase: Phase, optimizer: Optimizer) -> None:
        """Puts a phase into effect; may be repeated."""
        groups = parameter_groups(self.backbone, self.loss)
        for name, group in zip(groups, optimizer.param_groups, strict=True):
            for parameter in groups[name]:
                parameter.requires_grad_(not phase.freezes(name))
                if phase.freezes(name):
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)
            if "weight_decay" in optimizer.defaults:
                group["weight_decay"] = phase.weight_decay.get(name, optimizer.defaults["weight_decay"])
        self.loss.coefficients = self.coefficients | dict(phase.coefficients)
        still = phase.freezes(BACKBONE) and phase.frozen_norms
        for module in self.backbone.modules():
            if isinstance(module, _NormBase):
                module.train(not still)

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "surveyed": self.surveyed, "spans": list(self.plan.spans)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.begun, self.surveyed = state_dict["begun"], state_dict["surveyed"]
        self.resumed_spans = state_dict["spans"]


def _wrap_again(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """A new DDP wrapper after a survey such as a pruning, since the old one keeps buffers of the old sizes."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = pl_module  # lets the old wrapper and its hooks go
        strategy.configure_ddp()


def plan_of(trainer: pl.Trainer) -> Phases | None:
    """The phases of the running training; None where it has none."""
    changes = (callback for callback in trainer.callbacks if isinstance(callback, PhaseChange))  # type: ignore[attr-defined]
    return next((change.plan for change in changes), None)
