"""Mistakes of the user's, told in plain words."""

import math


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
