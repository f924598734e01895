"""Reading files of plain data without running anyone's code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from robustfg.errors import UserError


def read_plain(path: Path, named: str) -> Any:
    """What ``torch.save`` wrote, on the CPU, if it holds tensors and plain containers only.

    Args:
        path: an existing file.
        named: how messages call it, such as ``checkpoint=outputs/…/best.ckpt``.

    Raises:
        UserError: if it is damaged, truncated, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than plain data and could run code" if zipfile.is_zipfile(path) else "it is damaged"
        raise UserError(f"{named} is refused: {reason}") from error
    except Exception as error:  # random bytes can break the reader anywhere
        raise UserError(f"{named} is damaged or truncated ({type(error).__name__})") from error
