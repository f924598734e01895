"""Modules whose size is learned: they take on that of a state dict before it is loaded."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Resizable(Protocol):
    """A module that training may have shrunk, such as pruned prototypes."""

    def resize_to(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Takes on the sizes in ``state``, where the module's own keys begin with ``prefix``, if they are possible."""


def resize_to(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Brings all resizable parts of a module to the sizes of a state dict."""
    for name, part in module.named_modules():
        if isinstance(part, Resizable):
            part.resize_to(state, f"{name}." if name else "")
