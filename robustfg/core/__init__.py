"""What every part rests on: types, errors, precision, files."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustfg.core.errors import UserError
    from robustfg.core.types import Batch, Output

__all__ = ["Batch", "Output", "UserError"]
_MODULES = {"Batch": "types", "Output": "types", "UserError": "errors"}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, so that an error can be raised without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
