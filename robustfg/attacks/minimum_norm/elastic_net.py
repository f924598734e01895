"""The elastic-net attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.penalty import ConstantSearch, PenaltyAttack
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import L1
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ElasticNet(PenaltyAttack):
    """EAD: beta * l1 + squared l2 size + c * hinge of the margin, by FISTA (Chen et al. 2018, algorithm 1).

    As there, every step thresholds at ``beta`` whatever its length, where the proximal step of the loss would threshold
    at length * beta: images are sparser than those of least loss, and no number of steps closes that gap.

    Args:
        beta: the weight of l1, and the change below which a pixel value is left as it was; 0.001 or 0.01 in the paper.
        rule: which success is kept: ``"l1"`` the one of least l1 size; ``"en"`` the one of least beta * l1 + squared
            l2 inside epsilon, which asks for ``stop_inside: false``.
        momentum: FISTA; false: ISTA, which asks about half as many images.
        early_abort: off, as the l1 size still falls when the loss no longer does.
    """

    threat: L1
    early_abort: bool = False
    beta: float = 1e-3
    rule: Literal["l1", "en"] = "l1"
    momentum: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, L1):
            raise UserError(f"ElasticNet minimises the l1 size, got the norm {self.threat.norm}")
        if self.beta < 0:
            raise UserError(f"beta must be >= 0, got {self.beta}")
        if self.rule not in ("l1", "en"):
            raise UserError(f"rule must be l1 or en, got {self.rule}")
        if self.rule == "en" and self.stop_inside:
            raise UserError("rule en compares all successes inside epsilon: it needs stop_inside: false")

    @property
    def passes(self) -> int:
        return 1 + self.searches * (self.steps - 1) * (1 + self.momentum)

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "beta": self.beta, "rule": self.rule, "momentum": self.momentum}

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        first, _, wrong = self.ask(batch, batch.clean)
        (first,) = self.retire(batch, wrong, first)
        image = ahead = kept = batch.clean
        push, search = first, self.search_of(batch)
        least = torch.full_like(search.constant, torch.inf)
        for taken in range(1, 1 + self.searches * (self.steps - 1)):
            if not len(batch):
                return
            weight, age = search.weight(image), search.steps(image)
            rate = self.learning_rate * (1 - age / self.steps).sqrt()
            before, change = image, ahead - batch.clean
            image = self.thresholded(change - rate * (2 * change - weight * push), batch.clean)
            ahead = image
            if self.momentum:
                won = batch.evaluate(image)[1] < 0
                kept, least = self.nearer(batch, image, won, kept, least)
                ahead = (image + age / (age + 3) * (image - before)).clamp(0, 1)
            push, margin, wrong = self.ask(batch, ahead)
            kept, least = self.nearer(batch, ahead, wrong, kept, least)
            wrong = wrong | won if self.momentum else wrong
            loss = self.elastic(ahead - batch.clean) + search.constant * margin.clamp_min(0)
            search, over = search.after(wrong, loss, steps=self.steps - 1, early_abort=self.early_abort)
            again = over.view(-1, 1, 1, 1)
            image, ahead = torch.where(again, batch.clean, image), torch.where(again, batch.clean, ahead)
            push = torch.where(again, first, push)
            state = batch.drop_fooled(first, image, ahead, push, kept, least, *search)
            done = state[-3] >= self.searches
            if (self.early_abort or taken % (self.steps - 1) == 0) and bool(done.any()):
                if self.rule == "en":
                    batch.set_result(state[4], done & state[5].isfinite())
                state = self.retire(batch, done, *state)
            first, image, ahead, push, kept, least, *columns = state
            search = ConstantSearch(*columns)

    def thresholded(self, change: Tensor, clean: Tensor) -> Tensor:
        """The image after soft thresholding of every change at ``beta`` (equation 6)."""
        return (clean + change.sign() * (change.abs() - self.beta).clamp_min(0)).clamp(0, 1)

    def elastic(self, change: Tensor) -> Tensor:
        """Weighted l1 size + squared l2 size, float64 ``(b,)``."""
        flat = change.double().flatten(1)
        return self.beta * flat.abs().sum(1) + flat.square().sum(1)

    def nearer(
        self, batch: ActiveBatch, image: Tensor, wrong: Tensor, kept: Tensor, least: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For rule en: the success inside epsilon of least elastic-net size so far, and that size."""
        if self.rule == "l1":
            return kept, least
        change = image - batch.clean
        size = self.elastic(change)
        better = wrong & (size < least) & (self.threat.size(change) <= self.threat.radius)
        return torch.where(better.view(-1, 1, 1, 1), image, kept), torch.where(better, size, least)
