"""Reading files of plain data without running anyone's code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from robustfg.core.errors import UserError

STARTS = (b"PK", b"\x80")
"""How files of ``torch.save`` begin: as a zip archive, and before torch 1.6 as a pickle."""


def _instead(path: Path) -> str:
    """What a file is in the place of one of ``torch.save``, where that is often met; to be added to a message."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"version https://git-lfs"):
        return " but a pointer to one in Git LFS; fetch it with git lfs pull"
    if start.lstrip()[:1] == b"<":
        return " but a page, such as a server's answer; download the file itself"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return " but weights alone (safetensors), which model.weights takes"
    return ""


def read_plain(path: Path, named: str, kind: str) -> Any:
    """What ``torch.save`` wrote, on the CPU, if it holds tensors and plain containers only.

    Args:
        path: an existing file.
        named: how messages call it, such as ``checkpoint=outputs/…/best.ckpt``.
        kind: what it should be, such as ``checkpoint``.

    Raises:
        UserError: if it is something else altogether, damaged, truncated, or holds anything else.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start and not start.startswith(STARTS):
        raise UserError(f"{named} is no {kind}{_instead(path)}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than plain data and could run code" if zipfile.is_zipfile(path) else "it is damaged"
        raise UserError(f"{named} is refused: {reason}") from error
    except Exception as error:  # random bytes can break the reader anywhere
        raise UserError(f"{named} is damaged or truncated ({type(error).__name__})") from error
