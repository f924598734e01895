"""Rotations and shifts of the whole image (Engstrom et al. 2019, "Exploring the Landscape of Spatial Robustness")."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.search import Search
from robustfg.attacks.threats.base import Threat, ThreatError, pixel_value
from robustfg.core.errors import UserError

NOT_ADDED = "threat rigid has no pixel changes to add; attack it with Spatial"


def turned(image: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Turns images counter-clockwise about their centre, then shifts them; black comes in from beyond the border.

    Bilinear, differentiable in all arguments.

    Args:
        image: ``(B, C, H, W)`` in [0, 1].
        degrees: ``(B,)``.
        shift: ``(B, 2)`` pixels down and right.
    """
    height, width = image.shape[2:]
    sine, cosine = torch.deg2rad(degrees).sin(), torch.deg2rad(degrees).cos()
    down, right = shift.unbind(1)
    # Where an output pixel comes from: R^-1 (pixel - shift), in coordinates from -1 to 1.
    across = [cosine, -sine * (height / width), (sine * down - cosine * right) * (2 / width)]
    along = [sine * (width / height), cosine, -(sine * right + cosine * down) * (2 / height)]
    place = torch.stack([torch.stack(across, 1), torch.stack(along, 1)], 1)
    grid = F.affine_grid(place, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Rigid(Threat):
    """Rotation by at most ``degrees`` and a shift by at most ``shift`` of the side in both directions.

    No norm of the pixels' change bounds these images: ``size`` is 0 by definition, and the attack that turns the image
    checks its own angles and shifts. Attacks that change pixels refuse this threat model.

    Args:
        degrees: largest angle; 30 in the paper.
        shift: largest shift as a share of the side; 3 of 32 pixels, "10 %", in the paper.
    """

    norm: ClassVar[str] = "rigid"
    additive: ClassVar[bool] = False
    epsilon: str | float = field(init=False)
    degrees: float = 30.0
    shift: str | float = "3/32"

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise UserError(f"degrees must be in [0, 180], got {self.degrees}")
        if pixel_value(self.shift, "shift") > 1:
            raise UserError(f"shift is a share of the side, at most 1, got {self.shift}")
        object.__setattr__(self, "epsilon", f"{self.degrees:g} degrees, {self.shift} of the side")

    @property
    def radius(self) -> float:
        return 0.0

    def scaled(self, strength: float) -> Self:
        """``strength`` times the angle and the shift."""
        shift = strength * pixel_value(self.shift, "shift")
        return replace(self, degrees=strength * self.degrees, shift=shift)

    def limits(self, image: Tensor) -> Tensor:
        """Largest angle in degrees and largest shifts down and right in pixels, ``(3,)``."""
        shift = pixel_value(self.shift, "shift")
        limits = [self.degrees, shift * image.shape[2], shift * image.shape[3]]
        return torch.tensor(limits, dtype=image.dtype, device=image.device)

    def _to_ball(self, image: Tensor, clean: Tensor) -> Tensor:
        raise UserError(NOT_ADDED)

    def steepest(self, gradient: Tensor) -> Tensor:
        raise UserError(NOT_ADDED)

    def uniform(self, clean: Tensor, index: Tensor, *key: int | str) -> Tensor:
        raise UserError(NOT_ADDED)

    def size(self, perturbation: Tensor) -> Tensor:
        """0 by definition."""
        return perturbation.new_zeros(len(perturbation), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Spatial(Search):
    """Looks at many poses of every image and keeps the worst; first-order search is far weaker here (the paper, §4).

    Args:
        threat: largest angle and shifts.
        angles: angles of the grid; 31 in the paper.
        shifts: shifts of the grid in either direction; 5 in the paper, so 775 poses.
        tries: None for the grid; otherwise so many random poses of every sample instead, "worst of k", 10 in the paper.
    """

    additive: ClassVar[bool] = False
    threat: Rigid = field(default_factory=Rigid)
    angles: int = 31
    shifts: int = 5
    tries: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, Rigid):
            raise UserError(f"Spatial turns and shifts images: threat must be Rigid, got {self.threat.norm}")
        for option, value in {"angles": self.angles, "shifts": self.shifts, "tries": self.tries}.items():
            if value is not None and value < 1:
                raise UserError(f"{option} must be >= 1, got {value}")
        if self.tries is None and self.restarts > 1:
            raise UserError("restarts of a grid would look at the same poses again; give tries")

    @property
    def steps(self) -> int:
        """Poses per restart."""
        return self.angles * self.shifts**2 if self.tries is None else self.tries

    @property
    def passes(self) -> int:
        return self.restarts * self.steps

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "poses": f"grid of {self.angles} x {self.shifts} x {self.shifts}" if self.tries is None else "random",
            "restarts": self.restarts,
            "objective": self.decision.name,
            "seed": self.seed,
        }

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """One pose after another; samples that are fooled leave."""
        limits = self.threat.limits(batch.clean)
        grid = None if self.tries is not None else self._grid().to(limits)
        farthest = torch.zeros_like(limits)
        for step in range(self.steps):
            if grid is None:
                share = 2 * draws.uniforms(3, batch.index, "pose", step).to(limits) - 1
            else:
                share = grid[step].expand(len(batch), 3)
            pose = share * limits
            farthest = torch.maximum(farthest, pose.abs().amax(0))
            batch.evaluate(turned(batch.clean, pose[:, 0], pose[:, 1:]))
            batch.drop_fooled()
            if not len(batch):
                break
        if not bool((farthest <= limits).all()):
            raise ThreatError(f"a pose left the threat model: {farthest.tolist()} > {limits.tolist()}")

    def _grid(self) -> Tensor:
        """Shares of the limits, ``(angles * shifts^2, 3)``, the farthest first, so that samples leave early."""
        axes = [_shares(self.angles), _shares(self.shifts), _shares(self.shifts)]
        poses = sorted(product(*axes), key=lambda pose: -sum(map(abs, pose)))
        return torch.tensor(poses, dtype=torch.float64)


def _shares(count: int) -> list[float]:
    """Evenly from -1 to 1; a single one is 0."""
    return [2 * step / (count - 1) - 1 for step in range(count)] if count > 1 else [0.0]
