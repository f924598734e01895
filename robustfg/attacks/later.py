"""Answers that are looked at together, where each look would make the host wait or cost as much as a small network."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks.ledger import Ledger
from robustfg.attacks.objectives import Margin, Objective
from robustfg.attacks.referee import Referee
from robustfg.types import Output, joined, logits_of


class Answer(NamedTuple):
    """What the model said to one image of every sample still attacked."""

    image: Tensor
    """``(b, C, H, W)``."""
    output: Output | Tensor
    step: int
    """Place in the steps."""
    spent: Tensor | int
    """Forward passes of the step before it."""


@dataclass
class Step:
    """Passes of one step, of everybody or ``(b,)``."""

    forwards: Tensor | int = 0
    backwards: Tensor | int = 0


class Later:
    """Takes in what a search is told, and tells the ledger of several steps at once.

    The ledger then is as if everybody who won had left after that step: nothing that was asked about them later counts.
    What a copy leaves open is asked of the model itself, of all images that may count, so that no success is lost.

    Args:
        referee: who asks the model itself.
        ledger: of the samples; it keeps the smallest margins.
        decision: positive where the attacker has won.
    """

    def __init__(self, referee: Referee, ledger: Ledger, decision: Objective) -> None:
        self._referee, self._ledger, self._decision = referee, ledger, decision
        self._answers: list[Answer] = []
        self._steps = [Step()]
        self._paying: Tensor | None = None  # (b,) bool, in the first of the steps; None: everybody

    @property
    def answers(self) -> int:
        """How many images of a sample are held."""
        return len(self._answers)

    @property
    def differentiated(self) -> bool:
        """Whether a backward pass is not yet told to the ledger."""
        return any(isinstance(step.backwards, Tensor) or step.backwards > 0 for step in self._steps)

    def add(self, image: Tensor, output: Output | Tensor) -> None:
        """Takes in a detached answer to one image of every sample still attacked, not yet charged."""
        kept = logits_of(output) if self._decision == Margin() else output
        self._answers.append(Answer(image, kept, len(self._steps) - 1, self._steps[-1].forwards))

    def charge(self, forwards: Tensor | int, backwards: Tensor | int) -> None:
        """Counts passes of this step, ``(b,)`` or of everybody."""
        step = self._steps[-1]
        step.forwards, step.backwards = step.forwards + forwards, step.backwards + backwards

    def rest(self) -> None:
        """A step ends. From here on those who have won by now only wait to be let go."""
        self._steps.append(Step())

    def keep(self, rows: Tensor) -> None:
        """Lets the samples go that ``rows`` ``(n,)`` does not name; all is read."""
        self._paying = None if self._paying is None else self._paying[rows]

    def read(self, clean: Tensor, label: Tensor, index: Tensor) -> None:
        """Tells the ledger; before samples leave, and at the end.

        Args:
            clean: ``(b, C, H, W)`` of the samples still attacked.
            label: ``(b,)``.
            index: ``(b,)`` their ids.
        """
        answers, steps, self._answers, self._steps = self._answers, self._steps, [], [Step()]
        if not len(label):
            return
        fooled = self._ledger.now.fooled
        asked: Tensor | int = 0
        won = fooled[None]  # before the first answer, and by each
        if answers:
            margin, asked = self._margins(answers, label, index, ~fooled)
            won = torch.cat([won, margin < 0])
        wins = won.cumsum(0)
        pays = self._pays(answers, len(steps), wins)
        forwards = torch.stack([paying * step.forwards for paying, step in zip(pays, steps, strict=True)])
        backwards = torch.stack([paying * step.backwards for paying, step in zip(pays, steps, strict=True)])
        if answers:
            score = margin.masked_fill(wins[:-1] > 0, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)
            least, pick = score.min(0)
            everyone = torch.arange(len(label), device=label.device)
            before = self._ledger.spent + forwards.cumsum(0) - forwards
            spent = torch.stack([before[answer.step] + answer.spent for answer in answers])
            image = torch.stack([answer.image for answer in answers])
            self._ledger.saw(image[pick, everyone], clean, least, spent[pick, everyone])
        self._ledger.charge(forwards.sum(0) + asked, backwards.sum(0))

    def _pays(self, answers: list[Answer], steps: int, wins: Tensor) -> Tensor:
        """Who pays for the passes of each step: those who have not won in one before, ``(steps, b)`` bool."""
        first = torch.ones_like(wins[0], dtype=torch.bool) if self._paying is None else self._paying
        known = (sum(answer.step < step for answer in answers) for step in range(1, steps))
        pays = torch.stack([first, *(wins[count] == 0 for count in known)])
        self._paying = pays[-1]
        return pays

    def _margins(
        self, answers: list[Answer], label: Tensor, index: Tensor, stands: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        """Decision margins ``(n, b)`` of all answers, and how many passes asking the model itself took, ``(b,)``."""
        together, count = joined([answer.output for answer in answers]), len(answers)
        margin = -self._decision(together, label.repeat(count))
        if self._referee.run.itself is None:
            return margin.view(count, -1), 0
        left_open = self._referee.leaves_open(margin, answers[0].image, together, self._decision).view(count, -1)
        margin = margin.view(count, -1)
        sure = ((margin < 0) & ~left_open).long()
        left_open = left_open & (sure.cumsum(0) == sure) & stands
        turn, of = left_open.nonzero().unbind(1)
        if not len(of):
            return margin, 0
        rows = torch.split(of, left_open.sum(1).tolist())
        image = torch.cat([answer.image[row] for answer, row in zip(answers, rows, strict=True)])
        told = self._referee.told(margin[turn, of], image, label[of], self._decision, index[of])
        return margin.index_put((turn, of), told), left_open.sum(0) * self._referee.run.engine.samples
