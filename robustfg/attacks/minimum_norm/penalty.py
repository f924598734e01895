"""Attacks that minimise size + c * (what is missing to a success), with a search for c; CW and EAD are two of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.minimum_norm.base import MinimumNormAttack
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.core.errors import UserError
from robustfg.core.types import Output

SHARE, PROGRESS = 10, 0.9999
"""A search goes on while its loss falls to less than this share in a tenth of the steps; as in the released code."""
PATIENCE, YOUNG = 10, 30
"""Steps between two looks and before the first, at least. The released code asks for the mean loss of a batch, which
is smooth; a sample's own loss rises on its way over the boundary."""


@dataclass(frozen=True)
class Confident:
    """A decision that the attacker wins only by more than ``confidence``."""

    decision: Objective
    confidence: float
    name = "confident"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return self.decision(output, label) - self.confidence


class ConstantSearch(NamedTuple):
    """Binary search over c (Carlini & Wagner 2017, section VI-A), each sample at its own pace; ``(b,)`` each."""

    constant: Tensor
    lower: Tensor
    upper: Tensor
    won: Tensor
    """There was a success with this constant."""
    age: Tensor
    """Steps taken with this constant."""
    done: Tensor
    """Constants tried."""
    lowest: Tensor
    """Lowest loss with this constant."""
    before: Tensor
    """The same at the last look at the progress."""

    def weight(self, like: Tensor) -> Tensor:
        """The constant, to multiply images with."""
        return self.constant.to(like.dtype).view(-1, 1, 1, 1)

    def steps(self, like: Tensor) -> Tensor:
        """The age, to multiply images with."""
        return self.age.to(like.dtype).view(-1, 1, 1, 1)

    def after(self, wrong: Tensor, loss: Tensor, *, steps: int, early_abort: bool) -> tuple["ConstantSearch", Tensor]:
        """After one more step: the search, and which samples begin again with another constant.

        Args:
            wrong: ``(b,)`` successes of this step.
            loss: ``(b,)`` what is minimised.
            steps: with one constant, at most.
            early_abort: give a constant up when the loss stops to fall.
        """
        age, won = self.age + 1, self.won | wrong
        over, lowest, before = age >= steps, torch.minimum(self.lowest, loss.double()), self.before
        if early_abort:
            due = (age % max(PATIENCE, steps // SHARE) == 0) & (age >= YOUNG)
            over = over | (due & (lowest > PROGRESS * before))
            before = torch.where(due, lowest, before)
        upper = torch.where(over & won, torch.minimum(self.upper, self.constant), self.upper)
        lower = torch.where(over & ~won, torch.maximum(self.lower, self.constant), self.lower)
        following = torch.where(upper.isfinite(), (lower + upper) / 2, self.constant * 10)
        search = ConstantSearch(
            constant=torch.where(over, following, self.constant),
            lower=lower,
            upper=upper,
            won=won & ~over,
            age=age.masked_fill(over, 0),
            done=self.done + over,
            lowest=lowest.masked_fill(over, torch.inf),
            before=before.masked_fill(over, torch.inf),
        )
        return search, over


@dataclass(frozen=True, kw_only=True)
class PenaltyAttack(MinimumNormAttack):
    """What CW and EAD share.

    Args:
        searches: constants tried; 9 in the papers.
        steps: images asked about with each constant, the clean one included, which is asked about once for all;
            1000 in EAD's paper, up to 10,000 in the released code of Carlini & Wagner.
        learning_rate: 0.01 in both papers.
        initial_constant: the first constant; tenfold until the first success.
        confidence: only a margin larger than this is a success; margins are reported with it subtracted.
        early_abort: give a constant up when its loss stops to fall; for every sample by itself.
        objective: what is maximised until the success.
    """

    searches: int = 9
    steps: int = 100
    learning_rate: float = 0.01
    initial_constant: float = 1e-3
    confidence: float = 0.0
    early_abort: bool = True
    objective: Objective = field(default_factory=Margin)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.searches < 1:
            raise UserError(f"searches must be >= 1, got {self.searches}")
        if self.steps < 2:
            raise UserError(f"steps must be >= 2, got {self.steps}")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate must be > 0, got {self.learning_rate}")
        if self.initial_constant <= 0:
            raise UserError(f"initial_constant must be > 0, got {self.initial_constant}")
        if self.confidence < 0:
            raise UserError(f"confidence must be >= 0, got {self.confidence}")
        if self.restarts != 1:
            raise UserError(f"{type(self).__name__} has nothing random: restarts must be 1, got {self.restarts}")

    @property
    def passes(self) -> int:
        return 1 + self.searches * (self.steps - 1)

    @property
    def deciding(self) -> Objective:
        return Confident(self.decision, self.confidence) if self.confidence else self.decision

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "searches": self.searches,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "initial_constant": self.initial_constant,
            "confidence": self.confidence,
            "early_abort": self.early_abort,
            "stop_inside": self.stop_inside,
            "restarts": self.restarts,
            "objective": self.objective.name,
            "seed": self.seed,
        }

    def search_of(self, batch: ActiveBatch) -> ConstantSearch:
        """The search at its beginning."""
        count = torch.zeros_like(batch.label)
        zero, none = count.double(), count.bool()
        far = zero + torch.inf
        return ConstantSearch(zero + self.initial_constant, zero, far, none, count, count, far, far)

    def ask(self, batch: ActiveBatch, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One pass: the objective's gradient, 0 where there is success, the margin, and where there is success."""
        answer = batch.gradient(image, self.objective)
        wrong = batch.margin < 0
        return answer.gradient.masked_fill(wrong.view(-1, 1, 1, 1), 0), batch.margin, wrong
