"""A model as an attack needs it: eval mode, parameters frozen, gradients on; everything put back after."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from robustfg.types import Output, pixels_checked

Model = Callable[[Tensor], Output | Tensor]


@contextmanager
def attackable(model: Model, *, eval_mode: bool = True) -> Iterator[None]:
    """Freezes a module's parameters and switches it to eval mode, also when called under ``inference_mode``.

    Plain functions are left as they are. Flags are restored on the way out, also after an error or Ctrl-C, and so are
    the modules' buffers where modules stay in train mode.

    Args:
        model: what is attacked.
        eval_mode: False leaves the modules' modes as they are.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        token = pixels_checked.set(True)
        stack.callback(lambda: pixels_checked.reset(token))
        if isinstance(model, nn.Module):
            modes = [(module, module.training) for module in model.modules()]
            trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

            def restore() -> None:
                for module, training in modes:
                    module.training = training
                for parameter in trainable:
                    parameter.requires_grad_(True)

            stack.callback(restore)
            if eval_mode:
                model.eval()
            elif model.training:
                stack.enter_context(_untouched(model))
            for parameter in trainable:
                parameter.requires_grad_(False)
        yield


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts running statistics back, which forward passes in train mode move."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
