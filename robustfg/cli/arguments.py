"""What a config gives to a constructor against what the constructor takes."""

import collections.abc
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from robustfg.cli.suggestions import NoOptionError
from robustfg.core.errors import UserError

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}
"""Types of single values, in the words of messages."""

PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}

LISTS = (list, tuple, set, frozenset, Sequence, Collection, Iterable)

LARGEST = 2**63 - 1
"""No tensor, size or seed can hold a larger whole number."""

Places = Callable[[str], Any]
"""Finds what a ``_target_`` names; None where there is no such thing."""


def fitting(
    target: Callable[..., Any], given: Mapping[str, Any], option: str, places: Places = lambda target: None
) -> dict[str, Any]:
    """The arguments as the constructor takes them: whole numbers written ``3.0`` become such.

    Args:
        target: the class or function.
        given: plain arguments by name; nodes with ``_target_`` stand for what they make.
        option: the node's name, for messages.
        places: resolves the ``_target_`` of nested nodes.

    Raises:
        UserError: for an argument that the constructor does not take, and for a value of another type than it asks for.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # not written in Python
        return dict(given)
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in given:
            if name not in parameters:
                raise NoOptionError(f"{option}.{name}", [f"{option}.{known}" for known in parameters])
    hints = _hints(target)
    taken = {}
    for name, value in given.items():
        hint = hints.get(name, Any)
        if not _fits(value, hint, places):
            raise UserError(f"{option}.{name} must be {_wanted(hint)}, got {shown(value)}")
        taken[name] = int(value) if _asks_for_whole(value, hint) else value
        refuse_impossible(taken[name], f"{option}.{name}")  # 1e30 as a whole number
    return taken


def refuse_impossible(value: Any, option: str) -> None:
    """Raises ``UserError`` for NaN, infinity and whole numbers beyond 64 bits, which no option takes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{option} must be a finite number, got {value}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{option} must be below 2^63, got {shown(value)}")


def shown(value: Any) -> str:
    """A value in a message: one line of at most 60 characters."""
    text = "null" if value is None else "''" if value == "" else str(value)
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    except (NameError, TypeError):  # names that only a type checker imports
        return {}


def _members(hint: Any) -> list[Any]:
    """The types of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [hint]


def _fits(value: Any, hint: Any, places: Places) -> bool:
    return any(_is(value, member, places) for member in _members(hint))


def _is(value: Any, hint: Any, places: Places) -> bool:
    """Whether a constructor that asks for one type can use the value; a whole number may be written 3.0."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        return value in parts
    if kind is None or kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool) or value in (0, 1)
    if kind is int:
        return type(value) is int or (isinstance(value, float) and value.is_integer())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(kind, type) or kind is object or hint is Any:
        return True
    if issubclass(kind, str | os.PathLike):
        return isinstance(value, str | os.PathLike)
    if kind in LISTS:
        return isinstance(value, list | tuple) and _all(value, parts, places)
    if issubclass(kind, Mapping):
        inside = parts[1:] or (Any,)
        return isinstance(value, Mapping) and all(_fits(entry, inside[0], places) for entry in value.values())
    if getattr(kind, "_is_protocol", False) or kind is collections.abc.Callable:  # type: ignore[comparison-overlap]
        return callable(value) or (isinstance(value, Mapping) and "_target_" in value)
    return isinstance(value, kind) or _makes(value, kind, places)


def _all(values: Sequence[Any], parts: tuple[Any, ...], places: Places) -> bool:
    """Whether the entries of a list have the types that its annotation has in brackets."""
    if not parts or parts == ((),):
        return True
    if len(parts) > 1 and parts[-1] is not Ellipsis:
        return len(values) == len(parts) and all(_fits(v, p, places) for v, p in zip(values, parts, strict=True))
    return all(_fits(value, parts[0], places) for value in values)


def _makes(value: Any, kind: type, places: Places) -> bool:
    """Whether a value is a node that makes an instance of a class, as far as can be said before it is made."""
    if not (isinstance(value, Mapping) and "_target_" in value):
        return False
    made = None if value.get("_partial_") else places(str(value["_target_"]))
    ours = isinstance(made, type) and all(one.__module__.startswith("robustfg.") for one in (made, kind))
    return not ours or (isinstance(made, type) and issubclass(made, kind))


def _asks_for_whole(value: Any, hint: Any) -> bool:
    kinds = _members(hint)
    return isinstance(value, float) and int in kinds and float not in kinds and Any not in kinds


def _wanted(hint: Any) -> str:
    members = _members(hint)
    simple = [text for kind, text in KINDS.items() if kind in members and kind is not type(None)]
    others = [_kind(member) for member in members if member not in KINDS]
    null = ["null"] if type(None) in members else []
    return " or ".join(dict.fromkeys([*simple, *others, *null]))


def _kind(hint: Any) -> str:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        return ", ".join(map(str, parts))
    if kind in LISTS:
        entries = {member for part in parts if part is not Ellipsis for member in _members(part)}
        of = " or ".join(text for entry, text in PLURAL.items() if entry in entries)
        return f"a list of {of}" if of else "a list"
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "options by name"
    name = getattr(kind, "__name__", "")
    return f"options whose _target_ makes {'an' if name[:1] in 'AEIOU' else 'a'} {name}"
