"""An objective and its gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.errors import UserError
from robustfg.types import Output


@dataclass(frozen=True)
class Slope:
    """An objective and its gradient at some images."""

    value: Tensor
    """``(b,)`` what is maximised."""
    gradient: Tensor
    """``(b, C, H, W)``; zero where it was not finite."""
    output: Output | Tensor
    """What the model answered, detached."""


def derivative(value: Tensor, image: Tensor, *, again: bool = False) -> Tensor:
    """Derivative of ``value``; zero where the model cut the graph, which is then told as a dead gradient."""
    if not value.requires_grad:
        return torch.zeros_like(image)
    try:
        gradient = torch.autograd.grad(value, image, allow_unused=True, retain_graph=again)[0]
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UserError(
            "the model's torch.utils.checkpoint(use_reentrant=True) has no gradient with respect to images: switch its "
            "gradient checkpointing off, or set use_reentrant=False"
        ) from error
    return torch.zeros_like(image) if gradient is None else gradient
