"""Phases: spans of training, each with its own learning rates, frozen parts, loss coefficients and surveys."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from torch import nn

from robustfg.core.errors import UserError
from robustfg.losses import LossModule
from robustfg.training.schedule import Constant, Schedule

BACKBONE = "backbone"
"""The group that holds the backbone's parameters; the loss module names the others."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs of training and how they differ from others.

    A group of parameters is ``"backbone"`` or one that the loss module names. A frozen group has no gradient, no
    update, no weight decay and no optimizer state.

    Args:
        name: what the phase is called in ``loss.phases``.
        epochs: its length; where ``trainer.max_epochs`` is not the sum, all phases are stretched to it.
        lr: learning rate by group; null or 0 to freeze the group, ``optimizer.lr`` where one is left out.
        weight_decay: likewise, ``optimizer.weight_decay`` where a group is left out.
        coefficients: weights of the loss's terms; those left out are as the loss was made.
        schedule: factor of all learning rates, over the phase's own ``epochs``. ``scheduler`` has no say in a run with
            phases, unless a phase says ``schedule: ${scheduler}``.
        surveys: surveys of the training set before the first step, in order.
        fresh_optimizer: clear the optimizer's state (momentum, moments) at the start.
        frozen_norms: a frozen backbone's batch norms use and keep their running averages, so that nothing in it moves,
            as is the rule in transfer learning (Keras's guide, torchvision's frozen batch norm). False: they go on as
            in training, as in the releases of ProtoPNet and ACCV 2020, which never leave train mode.
        selects: whether best.ckpt may be one of its epochs. Null: the last phase's only, where any phase has surveys or
            frozen parts; otherwise every phase's.
    """

    name: str
    epochs: int
    lr: Mapping[str, float | None] = field(default_factory=dict)
    weight_decay: Mapping[str, float] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Constant)
    surveys: Sequence[str] = ()
    fresh_optimizer: bool = False
    frozen_norms: bool = True
    selects: bool | None = None

    def __post_init__(self) -> None:
        option = f"loss.phases.{self.name}"
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            raise UserError(
                f"{option}.epochs must be a whole number >= 1, got {self.epochs}; leave a phase out with {option}=null"
            )
        for kind, values in {"lr": self.lr, "weight_decay": self.weight_decay}.items():
            for group, value in values.items():
                if value is not None and not value >= 0:
                    raise UserError(f"{option}.{kind}.{group} must be >= 0, got {value}")
        self.schedule.refuse_epochs(self.epochs, f"{option}.epochs")
        if isinstance(self.surveys, str):
            raise UserError(f"{option}.surveys must be a list, such as [{self.surveys}]")

    def freezes(self, group: str) -> bool:
        """Whether a group of parameters stays as it is."""
        return group in self.lr and not self.lr[group]


@dataclass(frozen=True)
class Phases:
    """All phases of a run, in order.

    Args:
        phases: at least one.
        spans: epochs that each takes in this run; empty for their own lengths.
    """

    phases: tuple[Phase, ...]
    spans: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.spans:
            object.__setattr__(self, "spans", tuple(phase.epochs for phase in self.phases))

    @property
    def epochs(self) -> int:
        """Length of the whole."""
        return sum(self.spans)

    @property
    def freeze(self) -> bool:
        """Whether any of them freezes anything."""
        return any(phase.freezes(group) for phase in self.phases for group in phase.lr)

    def stretched(self, max_epochs: int) -> "Phases":
        """The same phases over ``max_epochs``, in proportion, each at least one epoch long."""
        if max_epochs < len(self.phases):
            raise UserError(
                f"trainer.max_epochs must be >= {len(self.phases)}, one for each of loss.phases, got {max_epochs}"
            )
        lengths = [phase.epochs for phase in self.phases]
        total, spans = sum(lengths), [1] * len(lengths)
        for _ in range(max_epochs - len(lengths)):  # every further epoch goes where most is missing
            missing = [length * max_epochs - span * total for length, span in zip(lengths, spans, strict=True)]
            spans[missing.index(max(missing))] += 1
        return replace(self, spans=tuple(spans))

    def index(self, epoch: float) -> int:
        """Which phase it is after ``epoch`` epochs; the last one from the end on."""
        return min(bisect_right(list(accumulate(self.spans)), epoch), len(self.phases) - 1)

    def rate(self, group: str, default: float) -> Callable[[float], float]:
        """The learning rate of a group after any number of epochs, where the optimizer's own is ``default``."""

        def after(epoch: float) -> float:
            index = self.index(epoch)
            phase, since = self.phases[index], epoch - sum(self.spans[:index])
            rate = phase.lr.get(group, default) or 0.0
            return rate * phase.schedule(since * phase.epochs / self.spans[index], phase.epochs)

        return after

    def selects(self, epoch: int) -> bool:
        """Whether best.ckpt may be this epoch's."""
        selects = self.phases[self.index(epoch)].selects
        if selects is None:
            return self.is_last(epoch) or not (self.freeze or any(phase.surveys for phase in self.phases))
        return selects

    def is_last(self, epoch: int) -> bool:
        """Whether the epoch belongs to the last phase."""
        return self.index(epoch) == len(self.phases) - 1

    def refuse_unknown(self, loss: LossModule) -> None:
        """Raises ``UserError`` where a phase names what the loss module does not have, before anything is trained."""
        groups = [BACKBONE, *loss.groups()]
        members = [id(parameter) for group in loss.groups().values() for parameter in group]
        if sorted(members) != sorted(map(id, loss.parameters())) or groups.count(BACKBONE) > 1:
            raise UserError(f"loss: the groups of {type(loss).__name__} must hold each of its parameters once")
        for phase in self.phases:
            option = f"loss.phases.{phase.name}"
            for kind, given, known in (
                ("lr", phase.lr, groups),
                ("weight_decay", phase.weight_decay, groups),
                ("coefficients", phase.coefficients, loss.coefficients),
            ):
                for name in given:
                    if name not in known:
                        raise UserError(f"{option}.{kind}.{name}: unknown; known are {', '.join(known) or 'none'}")
            if all(phase.freezes(group) for group in groups):
                raise UserError(f"{option}.lr freezes everything; give one of {', '.join(groups)} a learning rate")
            for survey in phase.surveys:
                loss.survey(survey)
        if not any(self.selects(epoch) for epoch in accumulate((0, *self.spans[:-1]))):
            raise UserError("loss.phases: no phase selects, so there would be no best.ckpt; set selects=true in one")


def parameter_groups(backbone: nn.Module, loss: LossModule) -> dict[str, list[nn.Parameter]]:
    """The parameters that phases tell apart, by group."""
    return {BACKBONE: list(backbone.parameters()), **loss.groups()}
