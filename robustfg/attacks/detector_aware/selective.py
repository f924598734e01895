"""Selective and orthogonal gradient descent against a classifier and its detector (Bryniarski et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.detector_aware.orthogonal import orthogonal_step
from robustfg.attacks.gradient.step_rules import cosine
from robustfg.attacks.objectives.acceptance import Reading
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.search import Search
from robustfg.attacks.settings import settings_of
from robustfg.attacks.threats.base import Threat, step_length
from robustfg.attacks.threats.lp import L2, Linf
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SelectivePGD(Search):
    """Climbs the classifier's objective until it is fooled, then lowers the detector's score, sample by sample.

    Needs neither a weight nor a threshold: it goes on until the decision is won. Orthogonally, a step on the one leaves
    the other where it is to first order (``orthogonal_step``), which takes two backward passes. Steps shrink along a
    cosine, so that the end is finer than a step; in the paper they stay.

    Args:
        score: how abnormal an input looks, ``(B,)``.
        classifier: positive where the class is wrong.
        confidence: the classifier counts as fooled above this.
        orthogonal: l-inf and l2 only.
        size: length of the first step, in pixel units or as a share of epsilon.
        steps: per restart; 1000 in the paper.
        random_start: start at a point drawn from the ball; otherwise the first restart begins at the clean image.
    """

    score: Reading
    classifier: Objective = field(default_factory=Margin)
    confidence: float = 0.0
    orthogonal: bool = False
    size: str | float = "eps/4"
    steps: int = 100
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")
        if not step_length(self.size, 1.0) > 0:
            raise UserError(f"size must be > 0, got {self.size}")
        if self.orthogonal and not isinstance(self.threat, Linf | L2):
            raise UserError(f"orthogonal steps are known for linf and l2 threats, got {self.threat.norm}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "step_size": str(self.size),
            "random_start": self.random_start,
            "restarts": self.restarts,
            "objective": f"{self.classifier.name} {'orthogonal to' if self.orthogonal else 'then'} detector",
            "confidence": self.confidence,
            "score": settings_of(self.score),
            "seed": self.seed,
        }

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """One forward and one backward pass a step, two if orthogonal; samples that are fooled leave."""
        threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        current = batch.clean
        if self.random_start or restart:
            noise = threat.uniform(batch.clean, batch.index, *draws.key)
            current = threat.project(batch.clean + noise, batch.clean)
        for taken in range(self.steps):
            length = step_length(self.size, threat.reach) * cosine(taken, self.steps)
            current, standing = self._moved(batch, threat, current, length), len(batch)
            (current,) = batch.drop_fooled(current)
            if not len(batch):
                return
            if len(batch) < standing:
                threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        batch.evaluate(current)

    def _moved(self, batch: ActiveBatch, threat: Threat, current: Tensor, length: float) -> Tensor:
        image = current.detach().requires_grad_()
        output, _ = batch.evaluate(image, graph=True)
        wrong, hidden = self.classifier(output, batch.label), -self.score(output)
        fooled = wrong.detach() > self.confidence
        if not self.orthogonal:
            gradient = batch.backward(torch.where(fooled, hidden, wrong), image)
            return threat.project(current + length * threat.steepest(gradient), batch.clean)
        to_wrong, to_hidden = batch.backward(wrong, image, retain_graph=True), batch.backward(hidden, image)
        turn = fooled[:, None, None, None]
        along, across = torch.where(turn, to_hidden, to_wrong), torch.where(turn, to_wrong, to_hidden)
        return orthogonal_step(threat, current, batch.clean, along, across, length)
