"""The user's mistakes, as errors that one plain line reports."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class UserError(ValueError):
    """A mistake in an option or a file. The message names it and says what to do, in one line."""


def refuse_outside(
    option: str,
    value: float | None,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises ``UserError`` for a number outside a range; NaN and infinity always are.

    Args:
        option: its name, for the message.
        value: the number; None passes.
        least: smallest value that is allowed.
        above: largest value that is too small.
        most: largest value that is allowed.
        below: smallest value that is too large.
    """
    if value is None or (least <= value <= most and above < value < below and math.isfinite(value)):
        return
    low = f"[{least:g}" if least > above else f"({above:g}"
    high = f"{most:g}]" if most < below else f"{below:g})"
    if max(least, above) == -math.inf and min(most, below) == math.inf:
        wanted = "a finite number"
    elif min(most, below) == math.inf:
        wanted = f">= {least:g}" if least > above else f"> {above:g}"
    elif max(least, above) == -math.inf:
        wanted = f"<= {most:g}" if most < below else f"< {below:g}"
    else:
        wanted = f"in {low}, {high}"
    raise UserError(f"{option} must be {wanted}, got {value}")


class OptionsByName:
    """A base of classes whose options are given by name: ``UserError`` says so where they are given by position."""

    def __new__(cls, *values: object, **options: object) -> Self:
        """Raises ``UserError`` for values by position, unless the constructor takes some."""
        if values:
            _refuse_positional(cls.__name__, cls.__init__, values)
        return super().__new__(cls)


def options_by_name(make: Callable[P, T]) -> Callable[P, T]:
    """The same for a function."""

    @functools.wraps(make)
    def checked(*values: P.args, **options: P.kwargs) -> T:
        if values:
            _refuse_positional(make.__name__, make, values)
        return make(*values, **options)

    return checked


def _refuse_positional(name: str, make: Callable[..., object], values: tuple[object, ...]) -> None:
    names = [
        parameter.name
        for parameter in inspect.signature(make).parameters.values()
        if parameter.name != "self" and parameter.kind is not parameter.KEYWORD_ONLY
    ]
    if names:  # a subclass of the user's
        return
    got = ", ".join(type(value).__name__ for value in values)
    model = any(callable(value) for value in values)
    hint = f"; an attack takes the model afterwards: {name}(…)(model, images, labels)" if model else ""
    raise UserError(f"{name} takes its options by name, {name}(option=…), got {got} by position{hint}")
