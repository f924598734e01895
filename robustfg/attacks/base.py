"""The interface of every attack."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.freeze import Model
from robustfg.attacks.threat import Threat
from robustfg.errors import UserError


@dataclass(frozen=True)
class Attempt:
    """What one restart of an attack found for a batch of ``B`` samples."""

    image: Tensor
    """``(B, C, H, W)``, inside the threat model."""
    margin: Tensor
    """``(B,)`` decision margin the attack saw there; negative where it succeeded."""
    first_success: Tensor
    """``(B,)`` int64, gradient steps taken until the first wrong prediction; -1 where there was none."""
    forwards: Tensor
    """``(B,)`` int64, forward passes spent."""
    backwards: Tensor
    """``(B,)`` int64, backward passes spent."""
    dead_gradient: Tensor
    """``(B,)`` bool: the first gradient was all zero or not finite."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Looks for an image inside a threat model that is classified wrongly. Stateless.

    Args:
        threat: the allowed images.
        restarts: independent tries; the worst one counts, per sample.
        seed: chooses the random numbers, together with ``name``, draw, restart and sample id.
        name: separates the random numbers of different attacks.
    """

    threat: Threat
    restarts: int = 1
    seed: int = 0
    name: str = "attack"

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise UserError(f"restarts must be >= 1, got {self.restarts}")

    @abstractmethod
    def attempts(
        self, model: Model, image: Tensor, label: Tensor, index: Tensor, *, draw: int = 0
    ) -> Iterator[Attempt]:
        """Runs the restarts one after another.

        Args:
            model: images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)`` or an ``Output``. A module is attacked in
                eval mode with frozen parameters and is given back as it was.
            image: clean images. They may come from ``inference_mode``.
            label: ``(B,)`` true classes.
            index: ``(B,)`` sample ids, which key the random numbers.
            draw: asks for other random numbers on the same samples, such as the training step.
        """

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """Settings for the record: norm, epsilon, objective, steps and whatever else makes this attack what it is."""

    def __call__(self, model: Model, image: Tensor, label: Tensor, index: Tensor, *, draw: int = 0) -> Tensor:
        """The image with the smallest margin over all restarts, per sample; arguments as for ``attempts``."""
        best: Attempt | None = None
        for attempt in self.attempts(model, image, label, index, draw=draw):
            if best is None:
                best = attempt
            else:
                worse = attempt.margin < best.margin
                best.image[worse] = attempt.image[worse]
                best.margin[worse] = attempt.margin[worse]
        assert best is not None
        return best.image


def checked(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of image and label that autograd may use; refuses images that are not pixels in [0, 1]."""
    if image.dim() != 4 or label.shape != image.shape[:1]:
        raise ValueError(f"need images (B, C, H, W) and labels (B,), got {tuple(image.shape)} and {tuple(label.shape)}")
    image, label = image.detach().clone(), label.detach().clone()
    if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):
        low, high = torch.aminmax(image)
        raise ValueError(f"images must lie in [0, 1] (normalise inside the model), got [{low:.3g}, {high:.3g}]")
    return image, label
