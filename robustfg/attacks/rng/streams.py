"""The random numbers of one restart of an attack, keyed by seed, attack, draw, restart, purpose and sample."""

from dataclasses import dataclass

from torch import Tensor

from robustfg.attacks.rng.philox import keyed_integers, keyed_normals, keyed_signs, keyed_uniforms


@dataclass(frozen=True)
class Draws:
    """What keys the numbers besides the sample's id and the purpose, such as ``"start"`` or ``"window", step``."""

    seed: int
    attack: str
    draw: int
    restart: int

    @property
    def key(self) -> tuple[int | str, ...]:
        return self.seed, self.attack, self.draw, self.restart

    def uniforms(self, count: int, index: Tensor, *purpose: int | str) -> Tensor:
        """``(B, count)`` float32 in [0, 1)."""
        return keyed_uniforms(count, index, *self.key, *purpose)

    def normals(self, count: int, index: Tensor, *purpose: int | str) -> Tensor:
        """``(B, count)`` float32, standard normal."""
        return keyed_normals(count, index, *self.key, *purpose)

    def integers(self, high: int | Tensor, count: int, index: Tensor, *purpose: int | str) -> Tensor:
        """``(B, count)`` int64 in [0, high)."""
        return keyed_integers(high, count, index, *self.key, *purpose)

    def signs(self, count: int, index: Tensor, *purpose: int | str) -> Tensor:
        """``(B, count)`` float32, -1 or 1."""
        return keyed_signs(count, index, *self.key, *purpose)
