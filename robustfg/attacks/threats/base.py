"""Threat models: which images an attacker may hand in. The norm balls are in ``lp.py``."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from robustfg.core.errors import OptionsByName, UserError


def pixel_value(text: str | float, option: str) -> float:
    """Reads a length in pixel units, where 1 is the whole range: ``"8/255"``, ``"0.5/255"`` or ``0.03``."""
    try:
        above, _, below = str(text).partition("/")
        value = float(Fraction(above.strip()) / Fraction(below.strip() or "1"))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"{option} must be a number such as 8/255 or 0.03, got {text!r}") from None
    if value < 0:
        raise UserError(f"{option} must be >= 0, got {text}")
    return value


def step_length(text: str | float, radius: float) -> float:
    """Reads a step size: pixel units (``"2/255"``) or a share of the radius (``"eps"``, ``"eps/4"``, ``"2.5*eps"``)."""
    share = re.fullmatch(r"(?:([\d.]+)\s*\*\s*)?eps(?:\s*/\s*([\d.]+))?", str(text).strip())
    if share is None:
        return pixel_value(text, "step size")
    try:
        factor, divisor = (float(group) if group else 1.0 for group in share.groups())
        return radius * factor / divisor
    except (ValueError, ZeroDivisionError):
        raise UserError(f"step size must be such as 2/255, eps/4 or 2.5*eps, got {text!r}") from None


def flat_norm(tensor: Tensor) -> Tensor:
    """l2 norm of every sample, shaped ``(B, 1, 1, 1)`` so that it broadcasts.

    In float64: a float32 sum over 3x448x448 values is wrong by 5e-6, and squares of gradients below 1e-23 vanish.
    """
    norm: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float64)
    return norm.view(-1, *[1] * (tensor.dim() - 1))


class ThreatError(AssertionError):
    """An attack's own mistake: it gives an image that its threat model does not allow."""


@dataclass(frozen=True, kw_only=True)
class Threat(OptionsByName, ABC):
    """A norm ball of radius ``epsilon`` around the clean image, cut with the box [0, 1].

    Args:
        epsilon: the radius in pixel units, kept as the text that was typed (``"8/255"``).
    """

    norm: ClassVar[str]
    additive: ClassVar[bool] = True
    """Bounds a change that is added to the image."""
    epsilon: str | float

    def __post_init__(self) -> None:
        _ = self.radius

    @cached_property
    def radius(self) -> float:
        return pixel_value(self.epsilon, f"{self.norm} epsilon")

    @property
    def reach(self) -> float:
        """What a step size given as a share of epsilon is a share of: how far a pixel may go at the most."""
        return self.radius

    def scaled(self, strength: float) -> Self:
        """The same threat model with ``strength`` times its radius, for attacks that set in slowly; from 0 to 1."""
        return replace(self, epsilon=strength * self.radius)

    def placed(self, clean: Tensor, index: Tensor, *key: int | str) -> "Threat":
        """The threat model on these samples, where it leaves something open, such as a patch its place."""
        return self

    def project(self, image: Tensor, clean: Tensor) -> Tensor:
        """The allowed image nearest to ``image`` in the ball, then clipped to the box; ``(B, C, H, W)``."""
        return self._to_ball(image, clean).clamp(0, 1)

    def projector(self, clean: Tensor, *, once: bool = False) -> Callable[[Tensor], Tensor]:
        """``project`` for these clean images, with what it needs of them computed once; may change its argument.

        Args:
            clean: ``(B, C, H, W)``.
            once: nothing need be kept for a second call.
        """
        return lambda image: self.project(image, clean)

    @abstractmethod
    def _to_ball(self, image: Tensor, clean: Tensor) -> Tensor: ...

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of norm 1 that raises a linear function of this gradient the most."""

    @abstractmethod
    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        """A perturbation drawn uniformly from the ball for every sample, keyed by its id."""

    @abstractmethod
    def size(self, perturbation: Tensor) -> Tensor:
        """Norm of every perturbation in float64, ``(B,)``."""

    def check(self, adversarial: Tensor, clean: Tensor) -> None:
        """Raises ``ThreatError`` if any image left the ball (float64, slack 1e-6) or the box."""
        if not len(clean):
            return
        size = self.size(adversarial - clean)
        if not bool((size <= self.radius + 5e-7).all()):  # the difference's own rounding is below the rest of the slack
            size = self.size(adversarial.double() - clean.double())
            if not bool((size <= self.radius + 1e-6).all()):
                raise ThreatError(f"perturbation of {self.norm} size {size.max()} > {self.epsilon}")
        if not bool((adversarial.amin() >= 0) & (adversarial.amax() <= 1)):
            raise ThreatError("adversarial image outside [0, 1]")
