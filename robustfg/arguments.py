"""What a config gives to a constructor against what the constructor takes."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from robustfg.errors import UserError
from robustfg.option_names import NoOptionError

KINDS = {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
"""Types of which a value is checked, in the words of messages."""


def refuse_unfit(target: Callable[..., Any], given: Mapping[str, Any], option: str) -> None:
    """Raises ``UserError`` where a constructor does not take an argument, or takes only numbers and is given none.

    Args:
        target: the class or function.
        given: plain arguments by name.
        option: the node's name, for messages.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # not written in Python
        return
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in given:
            if name not in parameters:
                raise NoOptionError(f"{option}.{name}", [f"{option}.{known}" for known in parameters])
    hints = _hints(target)
    for name, value in given.items():
        allowed = _members(hints.get(name, Any))
        if allowed <= KINDS.keys() and not any(_is(value, kind) for kind in allowed):
            wanted = " or ".join(text for kind, text in KINDS.items() if kind in allowed)
            raise UserError(f"{option}.{name} must be {wanted}, got {'null' if value is None else value}")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    except (NameError, TypeError):  # names that only a type checker imports
        return {}


def _members(hint: Any) -> set[Any]:
    """The types of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_members, typing.get_args(hint)))
    return {hint}


def _is(value: Any, kind: type) -> bool:
    """Whether a constructor that asks for this kind can use the value; a whole number may be written 3.0."""
    if kind is float:
        return isinstance(value, int | float)
    if kind is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, kind) or (kind is bool and value in (0, 1))
