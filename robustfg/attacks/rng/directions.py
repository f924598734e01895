"""Random directions along which an attack without gradients tries an image."""

from typing import Protocol

import torch
from torch import Tensor

from robustfg.attacks.rng.streams import Draws

BITS = 24
"""Random bits in a uniform number of ``Draws``."""


class Directions(Protocol):
    """A distribution with mean 0 and covariance 1."""

    name: str

    def drawn(self, draws: Draws, like: Tensor, index: Tensor, *purpose: int | str) -> Tensor:
        """One direction for every image ``(B, C, H, W)``, keyed by the samples' ids."""


class Gaussian:
    """Standard normal, as in NES (Ilyas et al. 2018)."""

    name = "gaussian"

    def drawn(self, draws: Draws, like: Tensor, index: Tensor, *purpose: int | str) -> Tensor:
        return draws.normals(like.shape[1:].numel(), index, *purpose).view_as(like).to(like)


class Rademacher:
    """Plus or minus 1 in every coordinate, as in SPSA (Uesato et al. 2018); the cheaper one to draw."""

    name = "rademacher"

    def drawn(self, draws: Draws, like: Tensor, index: Tensor, *purpose: int | str) -> Tensor:
        size = like.shape[1:].numel()
        words = (draws.uniforms(-(-size // BITS), index, *purpose) * 2**BITS).int()
        bits = (words[:, :, None] >> torch.arange(BITS, device=words.device, dtype=torch.int32)) & 1
        signs: Tensor = bits.flatten(1)[:, :size].reshape(like.shape).to(like.dtype).mul_(2).sub_(1)
        return signs
