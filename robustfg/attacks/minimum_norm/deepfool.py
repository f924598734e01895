"""DeepFool: steps onto the nearest class boundary, linearised anew each time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.base import MinimumNormAttack
from robustfg.attacks.minimum_norm.hyperplane import TINY, dual_norm
from robustfg.attacks.minimum_norm.linearised import nearest_boundary
from robustfg.attacks.objectives.target_choice import TopClasses
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import L2, Linf
from robustfg.core.errors import UserError
from robustfg.core.types import logits_of

BEYOND = 1e-4
"""What the authors' code adds to every step: clipped ones would close in on the boundary and never cross it."""
FAR = 1e6
"""A step that no box is wide enough for; finite, for gradients that vanish."""


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNormAttack):
    """A small perturbation for few passes (Moosavi-Dezfooli et al. 2016, algorithm 2 and section 3.3).

    A sample is done with its first wrong image, inside epsilon or not. As in the authors' code the model is linearised
    at the overshot images. They are clipped to the box, which the paper ignores; exact steps inside the box
    (``hyperplane.py``) were tried: half the passes, but perturbations 5 to 13 % longer, because they land too far.

    Args:
        steps: at most; 50 in the authors' code.
        overshoot: steps are lengthened by this share, to get over the boundary; 0.02 in the paper.
        classes: so many with the highest logits on the clean image are considered, the true one included; 10 in the
            authors' code.
    """

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    stop_inside: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, L2 | Linf):
            raise UserError(f"DeepFool needs an l2 or l-inf threat, got {type(self.threat).__name__}")
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if self.overshoot < 0:
            raise UserError(f"overshoot must be >= 0, got {self.overshoot}")
        if self.classes < 2:
            raise UserError(f"classes must be >= 2, got {self.classes}")
        if self.restarts != 1:
            raise UserError(f"DeepFool has nothing random: restarts must be 1, got {self.restarts}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "overshoot": self.overshoot,
            "classes": self.classes,
            "restarts": self.restarts,
            "objective": "nearest_boundary",
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        return self.steps + 1

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Steps from the clean image; ``draws`` and ``restart`` change nothing."""
        image = batch.clean.detach().requires_grad_()
        output, margin = batch.evaluate(image, graph=True)
        others = TopClasses(count=self.classes - 1).choose(logits_of(output), batch.label)
        for taken in range(1, self.steps + 1):
            won = margin < 0
            if bool(won.all()):
                return
            boundary = nearest_boundary(batch, output, image, others, ~won)
            length = BEYOND + boundary.gap / dual_norm(self.threat, boundary.normal).clamp_min(TINY)
            length = (1 + self.overshoot) * length.clamp(-FAR, FAR).to(image.dtype)[:, None, None, None]
            moved = (image.detach() + length * self.threat.steepest(boundary.normal)).clamp(0, 1)
            moved, others = self.retire(batch, won, moved, others)
            image = moved.requires_grad_()
            output, margin = batch.evaluate(image, graph=taken < self.steps)
