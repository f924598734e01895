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
    own_word: bool
    """It is the attacked model's own."""


@dataclass
class Step:
    """Passes of one step, of everybody or ``(b,)``."""

    forwards: Tensor | int = 0
    backwards: Tensor | int = 0


class Later:
    """Takes in what a search is told, and tells the ledger of several steps at once.

    The ledger then is as if everybody who won had left after that step: nothing that was asked about them later counts.
    What a copy calls a success is asked of the model itself, the first of every sample, then the next if that was none.

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
        own_word = self._referee.run.own_word
        self._answers.append(Answer(image, kept, len(self._steps) - 1, self._steps[-1].forwards, own_word))

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

    def read(self, clean: Tensor, label: Tensor) -> None:
        """Tells the ledger; before samples leave, and at the end.

        Args:
            clean: ``(b, C, H, W)`` of the samples still attacked.
            label: ``(b,)``.
        """
        answers, steps, self._answers, self._steps = self._answers, self._steps, [], [Step()]
        if not len(label):
            return
        fooled = self._ledger.now.fooled
        asked: Tensor | int = 0
        won = fooled[None]  # before the first answer, and by each
        if answers:
            margin, asked = self._margins(answers, label, ~fooled)
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

    def _margins(self, answers: list[Answer], label: Tensor, stands: Tensor) -> tuple[Tensor, Tensor | int]:
        """Decision margins ``(n, b)`` of all answers, and how many passes asking the model itself took, ``(b,)``."""
        together, count = joined([answer.output for answer in answers]), len(answers)
        margin = -self._decision(together, label.repeat(count))
        margin = margin.view(count, -1).to(self._ledger.now.margin.dtype)
        asked = torch.zeros_like(label)
        sure = torch.tensor([answer.own_word for answer in answers], device=label.device)[:, None].expand_as(margin)
        if all(answer.own_word for answer in answers):
            return margin, 0
        seen = logits_of(together).view(count, len(label), -1)
        for _ in answers:
            wrong = (margin < 0) & stands
            turn, everyone = wrong.long().argmax(0), torch.arange(len(label), device=label.device)  # the first one
            of = (wrong.any(0) & ~sure[turn, everyone]).nonzero().flatten()
            if not len(of):
                break
            place = turn[of], of
            image = torch.stack([answers[t].image[row] for t, row in zip(*(p.tolist() for p in place), strict=True)])
            told = self._referee.told(image, seen[place], label[of], self._decision, self._ledger.rows[of])
            margin = margin.index_put(place, told.to(margin.dtype))
            sure = sure.index_put(place, torch.ones_like(of, dtype=torch.bool))
            asked = asked.index_add(0, of, torch.ones_like(of))
        return margin, asked * self._referee.run.engine.samples
