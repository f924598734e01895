"""Class priors of a mixture: uniform, given or learned."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError


class Priors(nn.Module, ABC):
    """The probabilities p(k) of K classes.

    Args:
        num_classes: K.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def log(self) -> Tensor | None:
        """Logarithms of p(k), ``(K,)``; None where all are equal, since equal ones change no posterior."""

    @abstractmethod
    def become(self, count: Tensor) -> None:
        """Sets the priors from the numbers of training samples of every class, ``(K,)``; a class has one at least."""


class Uniform(Priors):
    """p(k) = 1/K, as in all released code."""

    def log(self) -> None:
        return None

    def become(self, count: Tensor) -> None:
        del count  # they stay uniform


class Given(Priors):
    """Fixed priors.

    Args:
        num_classes: K.
        frequencies: of the classes, in any unit; None for equal ones until a survey has counted the training set.
    """

    log_frequencies: Tensor

    def __init__(self, *, num_classes: int, frequencies: Sequence[float] | None = None) -> None:
        super().__init__(num_classes=num_classes)
        given = [1.0] * num_classes if frequencies is None else list(frequencies)
        if len(given) != num_classes or not all(value > 0 for value in given):
            raise UserError(f"loss.priors.frequencies must be {num_classes} numbers > 0, got {given}")
        self.counted = frequencies is None
        self.register_buffer("log_frequencies", torch.tensor(given, dtype=torch.float64).log().float())

    def log(self) -> Tensor:
        return self.log_frequencies.log_softmax(0)

    @torch.no_grad()
    def become(self, count: Tensor) -> None:
        if self.counted:
            self.log_frequencies.copy_(count.double().clamp_min(1).log())


class Learned(Priors):
    """p = softmax of learned numbers, which start at 0; weight decay draws the priors to uniform ones.

    Args:
        num_classes: K.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)
        self.scores = nn.Parameter(torch.zeros(num_classes))

    def log(self) -> Tensor:
        return self.scores.log_softmax(0)

    @torch.no_grad()
    def become(self, count: Tensor) -> None:
        frequencies = count.double().clamp_min(1).log()
        self.scores.copy_(frequencies - frequencies.mean())
