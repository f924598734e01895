"""The device of the option ``device``."""

import torch

from robustfg.core.errors import UserError


def device_of(name: str) -> torch.device:
    """A device by name; ``"auto"`` is the machine's accelerator, or the CPU where there is none.

    Raises:
        UserError: for a device that does not exist here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # not on meta
        return probe.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch was built without it
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from error
