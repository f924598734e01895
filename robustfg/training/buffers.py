"""Extra forward passes in train mode that leave no trace in batch norm's running averages."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from robustfg.attacks.runtime.eval_mode import AsItIs
from robustfg.training.regime import Classify


@contextmanager
def unchanged_buffers(model: Classify) -> Iterator[None]:
    """Puts a module's buffers back on the way out, also after an error. Plain functions are left as they are."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def as_in_training(model: Classify) -> Iterator[Classify]:
    """The model as attacks do not switch it to eval mode; parameters are frozen meanwhile.

    Batch norm uses the batch's own statistics and dropout is active.
    """
    frozen = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    with unchanged_buffers(model):
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield AsItIs(model)  # type: ignore[misc]
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
