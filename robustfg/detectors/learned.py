"""Modules whose buffers get their sizes from what was learned."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError


class Learned(nn.Module):
    """Holds what was learned in buffers that are empty before, and takes on the sizes of a state dict.

    Args:
        names: the buffers, float32 unless the module is moved.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.zeros(0))
        self.register_load_state_dict_pre_hook(_take_sizes)  # type: ignore[no-untyped-call]

    def keep(self, **values: Tensor) -> None:
        """Sets buffers, on the device and in the precision they have; integers stay integers."""
        for name, value in values.items():
            old = getattr(self, name)
            moved = value.to(old if value.is_floating_point() else old.device)
            setattr(self, name, moved.contiguous())  # as a loaded one is: sums are then alike to the last bit

    def known(self, name: str) -> Tensor:
        """A buffer. Raises ``UserError`` if nothing has been learned."""
        value: Tensor = getattr(self, name)
        if not value.numel():
            raise UserError(f"detector: {type(self).__name__} has learned nothing yet; fit it on the training split")
        return value


def _take_sizes(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    for name, own in list(module._buffers.items()):
        stored = state.get(f"{prefix}{name}")
        if own is not None and stored is not None and stored.shape != own.shape:
            dtype = own.dtype if stored.is_floating_point() else stored.dtype
            setattr(module, name, torch.zeros(stored.shape, dtype=dtype, device=own.device))
