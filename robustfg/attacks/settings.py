"""Objects as plain settings: what tells two attacks, threat models or objectives apart, ready for JSON."""

import functools
import hashlib
import math
import re
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


def settings_of(value: object) -> Plain:
    """An object's class and all that it holds, down to the bottom; equal only where nothing differs.

    Fields of dataclasses and attributes of other objects are told by name, mappings as pairs in their order, tensors
    and arrays by the SHA-256 of their bytes, modules by that of their state, functions by name and code. Process and
    device play no part.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} {tensor_sha256(value)}"
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {list(value.shape)} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, Mapping):
        return [[settings_of(key), settings_of(entry)] for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return [settings_of(entry) for entry in value]
    if isinstance(value, Set):
        return sorted((settings_of(entry) for entry in value), key=repr)
    if callable(value) and isinstance(value, _FUNCTIONS):
        return _function(value)
    return object_settings(value)


def object_settings(value: object) -> dict[str, Plain]:
    """An object's class and, by name, what it holds."""
    held = {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else _own(value)
    return {"class": _name(type(value)), **{name: settings_of(entry) for name, entry in held.items()}}


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, wherever it lies."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


_FUNCTIONS = (type, functools.partial, MethodType, FunctionType, BuiltinFunctionType)


def _module(module: nn.Module) -> Plain:
    state = {name: settings_of(entry) for name, entry in module.state_dict().items()}
    return {"module": _name(type(module)), "sha256": _digest([_without_addresses(repr(module)), state])}


def _function(function: object) -> Plain:
    if isinstance(function, functools.partial):
        return {name: settings_of(getattr(function, name)) for name in ("func", "args", "keywords")}
    if isinstance(function, MethodType):
        return {"method": function.__func__.__qualname__, "of": settings_of(function.__self__)}
    if not isinstance(function, FunctionType):
        return _name(function)
    enclosed = [settings_of(cell.cell_contents) for cell in function.__closure__ or ()]
    defaults = settings_of([function.__defaults__, function.__kwdefaults__])
    return {"function": _name(function), "code": _digest([_code(function.__code__), defaults, enclosed])}


def _code(code: CodeType) -> list[object]:
    return [code.co_code.hex(), code.co_names, [_constant(entry) for entry in code.co_consts]]


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # sets have no order of their own


def _own(value: object) -> dict[str, object]:
    """Attributes of an object that is no dataclass, or its text where it has none, such as a path or a device."""
    attributes = getattr(value, "__dict__", None)
    if attributes or type(value).__repr__ is object.__repr__:
        return dict(attributes or {})
    return {"text": _without_addresses(repr(value))}


def _name(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
