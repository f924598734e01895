"""The attack of Carlini & Wagner in l2."""

from dataclasses import dataclass

import torch

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.penalty import ConstantSearch, PenaltyAttack
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import L2
from robustfg.core.errors import UserError

EDGE = 0.999999
"""Images are drawn so much towards grey before atanh, which is infinite at black and white; as in the released code."""
DECAY = 0.9, 0.999
"""Adam's, and below its epsilon (Kingma & Ba 2015)."""
TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(PenaltyAttack):
    """Adam on squared l2 size + c * hinge of the margin, over w in image = (1 + tanh w) / 2 (Carlini & Wagner 2017).

    Every sample has its own Adam, constant and early abort.
    """

    threat: L2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, L2):
            raise UserError(f"CarliniWagner minimises the l2 size, got the norm {self.threat.norm}")

    def shrink(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        image = batch.clean
        first, _, wrong = self.ask(batch, image)
        start = torch.atanh((2 * image - 1) * EDGE)
        first, start = self.retire(batch, wrong, first, start)
        image, point, push = batch.clean, start, first
        mean, square = (torch.zeros_like(start, dtype=torch.float64) for _ in range(2))  # squares of large logits fit
        search = self.search_of(batch)
        for taken in range(1, self.passes):
            if not len(batch):
                return
            weight, age = search.weight(mean), search.steps(mean) + 1
            tanh = point.tanh()
            gradient = (2 * (image - batch.clean) - weight * push) * (1 - tanh.square()) / 2
            mean = DECAY[0] * mean + (1 - DECAY[0]) * gradient
            square = DECAY[1] * square + (1 - DECAY[1]) * gradient.square()
            root = (square / (1 - DECAY[1] ** age)).sqrt() + TINY
            point = (point - self.learning_rate * mean / (1 - DECAY[0] ** age) / root).to(image.dtype)
            image = (batch.clean + (point.tanh() - start.tanh()) / 2).clamp(0, 1)
            push, margin, wrong = self.ask(batch, image)
            loss = (image - batch.clean).flatten(1).square().sum(1) + search.constant * margin.clamp_min(0)
            search, over = search.after(wrong, loss, steps=self.steps - 1, early_abort=self.early_abort)
            again = over.view(-1, 1, 1, 1)
            image, point = torch.where(again, batch.clean, image), torch.where(again, start, point)
            push = torch.where(again, first, push)
            mean, square = mean.masked_fill(again, 0), square.masked_fill(again, 0)
            state = batch.drop_fooled(first, start, image, point, push, mean, square, *search)
            done = state[-3] >= self.searches
            if (self.early_abort or taken % (self.steps - 1) == 0) and bool(done.any()):
                state = self.retire(batch, done, *state)
            first, start, image, point, push, mean, square, *columns = state
            search = ConstantSearch(*columns)
