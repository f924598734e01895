"""A model as an attack needs it: eval mode, parameters frozen, gradients on; everything put back after."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from robustfg.types import Output, pixels_checked

Model = Callable[[Tensor], Output | Tensor]


@contextmanager
def attackable(model: Model) -> Iterator[None]:
    """Freezes a module's parameters and switches it to eval mode, also when called under ``inference_mode``.

    Plain functions are left as they are. Flags are restored on the way out, also after an error or Ctrl-C.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        token = pixels_checked.set(True)
        stack.callback(lambda: pixels_checked.reset(token))
        if isinstance(model, nn.Module):
            training = [module for module in model.modules() if module.training]
            trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

            def restore() -> None:
                for module in training:
                    module.training = True
                for parameter in trainable:
                    parameter.requires_grad_(True)

            stack.callback(restore)
            if training:
                model.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
        yield
