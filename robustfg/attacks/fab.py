"""FAB and FAB-T: fast adaptive boundary attacks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.active_batch import ActiveBatch
from robustfg.attacks.boundary import Boundary, nearest_boundary
from robustfg.attacks.draws import Draws
from robustfg.attacks.hyperplane import TINY, change_to_plane, require_plane_norm
from robustfg.attacks.minimum import MinimumNormAttack
from robustfg.attacks.targets import TopClasses
from robustfg.errors import UserError
from robustfg.types import logits_of


@dataclass(frozen=True, kw_only=True)
class FAB(MinimumNormAttack):
    """Walks along the boundary of the true class, drawn to the clean image (Croce & Hein 2020, algorithm 1).

    A step goes onto the nearest linearised boundary, from the current image and from the clean one, both inside the
    box, and mixes the two. A wrong image is kept if it is the nearest so far, and taken back toward the clean one.

    Args:
        targets: None looks at all boundaries in every step, with a backward pass for every wrong class. A number n
            runs all steps for each of the n most likely wrong classes and looks at its boundary only: FAB-T, which
            auto-attack runs with 9.
        steps: per target; 100 in the paper.
        alpha_max: largest share of the clean image's projection in the mixture; 0.1 in the paper.
        eta: steps are lengthened by this factor, to get over the boundary; 1.05 in the paper.
        beta: a wrong image keeps this share of its perturbation; 0.9 in the paper.
        final_search: looks at the end, at images between the clean and the best one. They take the place of the last
            steps, so that a walk of n steps costs at most 2n + 1 forward passes.
    """

    targets: int | None = None
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    final_search: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_plane_norm(self.threat, "FAB")
        if self.targets is not None and self.targets < 1:
            raise UserError(f"targets must be >= 1 or null, got {self.targets}")
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if self.final_search < 0:
            raise UserError(f"final_search must be >= 0, got {self.final_search}")
        for option, lowest in (("alpha_max", 0.0), ("beta", 0.0)):
            if not lowest <= getattr(self, option) <= 1:
                raise UserError(f"{option} must be in [0, 1], got {getattr(self, option)}")
        if self.eta < 1:
            raise UserError(f"eta must be >= 1, got {self.eta}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "targets": self.targets,
            "steps": self.steps,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
            "final_search": self.final_search,
            "stop_inside": self.stop_inside,
            "restarts": self.restarts,
            "objective": "nearest_boundary" if self.targets is None else "targeted_boundary",
            "seed": self.seed,
        }

    @property
    def passes(self) -> int:
        return self.restarts * ((self.targets or 1) * 2 * self.steps + 2)

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Walks once, or once per target; later restarts begin at random."""
        output, margin = batch.evaluate(batch.clean)
        logits = logits_of(output)
        chosen = TopClasses(count=self.targets or logits.shape[1])
        classes = chosen.choose(logits, batch.label)
        classes, margin = self.retire(batch, margin < 0, classes, margin)
        walks = 1 if self.targets is None else classes.shape[1]
        for walk in range(walks):
            if not len(batch):
                return
            start = batch.clean
            if restart:
                noise = self.threat.uniform(batch.clean, batch.index, *draws.key, walk)
                start = (batch.clean + noise / 2).clamp(0, 1)  # half the radius, as in the paper
            steps = self.steps if walk < walks - 1 else max(self.steps - (self.final_search + 1) // 2, 1)
            classes, margin = self._walk(batch, start, steps, walk, classes, margin)
        self._search_segment(batch, margin)

    def _walk(
        self, batch: ActiveBatch, start: Tensor, steps: int, walk: int, classes: Tensor, margin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The steps toward one target, or all; returns ``classes`` and ``margin`` of the samples still active."""
        current = start
        for _ in range(steps):
            image = current.detach().requires_grad_()
            output, _ = batch.evaluate(image, graph=True)
            others = classes if self.targets is None else classes[:, walk, None]
            stepped = self._step(image.detach(), batch.clean, nearest_boundary(batch, output, image, others))
            won = (batch.evaluate(stepped)[1] < 0)[:, None, None, None]
            current = torch.where(won, batch.clean + self.beta * (stepped - batch.clean), stepped)
            current, classes, margin = batch.drop_fooled(current, classes, margin)
            if not len(batch):
                break
        return classes, margin

    def _step(self, image: Tensor, clean: Tensor, boundary: Boundary) -> Tensor:
        """Onto the boundary and a little further, from the image and from the clean one, mixed by their distances."""
        normal = boundary.normal
        done = ((image.double() - clean.double()) * normal.double()).flatten(1).sum(1)
        change, clean_change = change_to_plane(
            self.threat,
            torch.cat([image, clean]),
            torch.cat([normal, normal]),
            torch.cat([boundary.gap, boundary.gap + done]),
        ).chunk(2)
        length, clean_length = self.threat.size(change), self.threat.size(clean_change)
        share = (length / (length + clean_length).clamp_min(TINY)).clamp_max(self.alpha_max)
        share = share.to(image.dtype)[:, None, None, None]
        moved = (1 - share) * (image + self.eta * change) + share * (clean + self.eta * clean_change)
        return moved.clamp(0, 1)

    def _search_segment(self, batch: ActiveBatch, margin: Tensor) -> None:
        """Looks between the clean images, with their ``margin``, and the best ones, where a line says the margin ends.

        A tenth of what the best one is too far is left, because most margins are not lines.
        """
        far, far_margin = batch.best()
        near, near_margin, far, far_margin = batch.select(far_margin < 0, batch.clean, margin, far, far_margin)
        for _ in range(self.final_search if len(batch) else 0):
            aim = 0.1 * far_margin
            share = ((near_margin - aim) / (near_margin - far_margin)).to(near.dtype)[:, None, None, None]
            middle = near + share * (far - near)
            reached = batch.evaluate(middle)[1]
            won = reached < 0
            near_margin, far_margin = torch.where(won, near_margin, reached), torch.where(won, reached, far_margin)
            won = won[:, None, None, None]
            near, far = torch.where(won, near, middle), torch.where(won, middle, far)
