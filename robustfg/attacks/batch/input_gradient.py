"""An objective and its gradient to the images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output

Change = Callable[[Tensor], Tensor]
"""A differentiable change of images before the model sees them."""


def unchanged(image: Tensor) -> Tensor:
    """The images as they are: asked about through this change, they count as passes but are not kept."""
    return image


@dataclass(frozen=True)
class InputGradient:
    """An objective, its gradient, and the model's answer at some images."""

    value: Tensor
    """``(b,)`` what is maximised."""
    gradient: Tensor
    """``(b, C, H, W)``; zero where it was not finite."""
    output: Output | Tensor
    """The model's answer, detached."""


def gradient_of(value: Tensor, image: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Derivative of the scalar ``value``; zero where the model cuts the graph, which counts as a dead gradient."""
    if not value.requires_grad:
        return torch.zeros_like(image)
    try:
        gradient = torch.autograd.grad(value, image, allow_unused=True, retain_graph=retain_graph)[0]
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UserError(
            "the model's torch.utils.checkpoint(use_reentrant=True) has no gradient with respect to images: switch its "
            "gradient checkpointing off, or set use_reentrant=False"
        ) from error
    return torch.zeros_like(image) if gradient is None else gradient
