"""Learning-rate schedules: a factor for every moment of training, after an optional linear warm-up."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from robustfg.core.errors import UserError, refuse_outside


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Multiplies the learning rate by ``schedule(epoch, max_epochs)``; epochs may be fractions.

    Args:
        warmup_epochs: the factor rises linearly from 0 over so many epochs.
    """

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        refuse_outside("warmup_epochs", self.warmup_epochs, least=0)

    def refuse_epochs(self, max_epochs: float, option: str) -> None:
        """Raises ``UserError`` where the warm-up does not end within the epochs that ``option`` gives."""
        if self.warmup_epochs > max_epochs:
            raise UserError(
                f"scheduler.warmup_epochs={self.warmup_epochs:g} is longer than {option}={max_epochs:g}: the learning "
                "rate would never be reached"
            )

    def __call__(self, epoch: float, max_epochs: float) -> float:
        """The factor after ``epoch`` of ``max_epochs`` epochs."""
        warm = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        return warm * self._factor(epoch, max_epochs)

    @abstractmethod
    def _factor(self, epoch: float, max_epochs: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The learning rate stays as it is."""

    def _factor(self, epoch: float, max_epochs: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` (Loshchilov & Hutter 2017, without restarts), starting after the warm-up."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside("final", self.final, least=0, most=1)

    def _factor(self, epoch: float, max_epochs: float) -> float:
        span = max(max_epochs - self.warmup_epochs, 1e-12)
        progress = min(max((epoch - self.warmup_epochs) / span, 0.0), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Multiplies by ``gamma`` after every ``every`` epochs."""

    every: float
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_outside("every", self.every, above=0)
        refuse_outside("gamma", self.gamma, above=0)

    def _factor(self, epoch: float, max_epochs: float) -> float:
        return float(self.gamma ** math.floor(epoch / self.every))


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """Multiplies by ``gamma`` at each of the given epochs."""

    milestones: Sequence[float]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for milestone in self.milestones:
            refuse_outside("milestones", milestone, above=0)
        refuse_outside("gamma", self.gamma, above=0)

    def _factor(self, epoch: float, max_epochs: float) -> float:
        return float(self.gamma ** bisect_right(sorted(self.milestones), epoch))
