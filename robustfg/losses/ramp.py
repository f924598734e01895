"""Coefficients that grow linearly over the first epochs."""

from dataclasses import dataclass

from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A value that rises linearly from ``start * value`` at epoch 0 to ``value`` at epoch ``epochs``.

    Args:
        value: the final value.
        start: share of it at the beginning.
        epochs: length of the ramp; 0 for the final value from the start.
    """

    value: float
    start: float = 1.0
    epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.value < 0 or self.start < 0 or self.epochs < 0:
            raise UserError(f"a ramp needs value, start and epochs >= 0, got {self}")

    def at(self, epoch: float) -> float:
        """The value after ``epoch`` epochs of training."""
        if epoch >= self.epochs:
            return self.value
        return self.value * (self.start + (1 - self.start) * epoch / self.epochs)
