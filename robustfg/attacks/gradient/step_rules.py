"""Step rules: how a gradient becomes the next image."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.threats.base import Threat, step_length
from robustfg.core.errors import OptionsByName


@dataclass(frozen=True, kw_only=True)
class StepRule(OptionsByName, ABC):
    """A step of fixed length in the threat model's norm.

    Args:
        size: the length in pixel units (``"2/255"``) or as a share of epsilon (``"eps/4"``).
    """

    size: str | float

    def __post_init__(self) -> None:
        step_length(self.size, 1.0)

    def __call__(
        self, image: Tensor, gradient: Tensor, memory: Tensor | None, threat: Threat
    ) -> tuple[Tensor, Tensor | None]:
        """The next image before projection, and what the rule remembers, ``(B, C, H, W)`` each."""
        direction, memory = self._direction(gradient, memory)
        move = threat.steepest(direction)
        place = None if move is direction else move  # no third image need be made
        return torch.add(image, move, alpha=step_length(self.size, threat.reach), out=place), memory

    def ahead(self, image: Tensor, memory: Tensor | None, threat: Threat) -> Tensor:
        """Where the gradient is taken: at the image itself, but for rules that look ahead, perhaps beyond the ball."""
        return image

    @abstractmethod
    def _direction(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, kw_only=True)
class Steepest(StepRule):
    """Steepest ascent: the sign of the gradient in l-inf, its direction in l2 (FGSM, BIM, PGD)."""

    def _direction(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, None]:
        return gradient, None


@dataclass(frozen=True, kw_only=True)
class Momentum(StepRule):
    """Steepest ascent along a running sum of gradients, each divided by its mean absolute value.

    This is MIM (Dong et al. 2018).

    Args:
        decay: share of the sum that is kept; 1.0 in the paper.
    """

    decay: float = 1.0

    def _direction(self, gradient: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        velocity = gradient / scale if memory is None else self.decay * memory + gradient / scale
        return velocity, velocity


@dataclass(frozen=True, kw_only=True)
class Nesterov(Momentum):
    """Momentum whose gradient is taken ahead, at image + size * decay * memory: NI-FGSM (Lin et al. 2020, eq. 6).

    That is the paper's for l-inf; in other norms the memory is scaled as a step is. What lies ahead may be outside the
    ball, so it is no candidate: only the last iterate is. It is clipped to [0, 1], which the released code does not.
    """

    def ahead(self, image: Tensor, memory: Tensor | None, threat: Threat) -> Tensor:
        if memory is None:
            return image
        step = threat.steepest(memory)
        moved = step != 0
        scale = step.abs().sum((1, 2, 3), keepdim=True) / moved.sum((1, 2, 3), keepdim=True).clamp_min(1)
        length = step_length(self.size, threat.reach) * self.decay
        return torch.add(image, scale * torch.where(moved, memory, 0), alpha=length).clamp_(0, 1)


def cosine(taken: int, steps: int) -> float:
    """Share of the first step's length after ``taken`` of ``steps``: from 1 along half a cosine wave towards 0."""
    return (1 + math.cos(math.pi * taken / steps)) / 2
