"""The arithmetic in which numbers are comparable."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import backends

EXACT = "none", "ieee"
"""Precisions of fp32 that are full: nothing said, or said."""
UNITS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""What ``torch.backends`` has a precision of its own for, in newer releases of torch."""


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full fp32: no autocast, no TF32 and no bfloat16 for it, autograd allowed; restored after."""
    restore = _as_it_is()
    try:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
        for unit in _units():
            if unit.fp32_precision not in EXACT:  # by ``torch.backends.fp32_precision``, which stands above
                unit.fp32_precision = "ieee"
        with torch.inference_mode(False), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        restore()


def _units() -> list[Any]:
    named = [unit.split(".") for unit in UNITS]
    found = [getattr(getattr(backends, library), work, None) for library, work in named]
    return [unit for unit in found if hasattr(unit, "fp32_precision")]


def _as_it_is() -> Callable[[], None]:
    """What sets the precision of fp32 as it is now.

    Newer releases of torch have two sets of words for it, and refuse to tell it in the older once the newer were used.
    """
    newer = [(unit, unit.fp32_precision) for unit in _units()]
    older: list[Callable[[], None]] = []
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
        older.append(lambda: torch.set_float32_matmul_precision(matmul))
    with suppress(RuntimeError):
        cudnn = backends.cudnn.allow_tf32
        older.append(lambda: setattr(backends.cudnn, "allow_tf32", cudnn))

    def restore() -> None:
        for set_ in older:
            set_()
        for unit, precision in newer:
            unit.fp32_precision = precision

    return restore
