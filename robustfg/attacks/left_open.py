"""Images about which the attacked model itself is asked later, where asking at once would make the host wait."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks.ledger import Ledger
from robustfg.attacks.objectives import Objective
from robustfg.attacks.referee import Referee
from robustfg.types import Output


class Seen(NamedTuple):
    """One image of every sample still attacked, ``(b,)`` but for the images."""

    image: Tensor
    """``(b, C, H, W)``."""
    margin: Tensor
    """By the copy."""
    open: Tensor
    """Whose sign the copy may have wrong."""
    spent: Tensor
    """Forward passes before."""


class LeftOpen:
    """Tells the ledger at once what a copy is sure of, and the rest when the model itself has been asked.

    Args:
        referee: who asks the model itself.
        ledger: of the samples; it keeps the smallest margins.
        decision: positive where the attacker has won.
    """

    def __init__(self, referee: Referee, ledger: Ledger, decision: Objective) -> None:
        self._referee, self._ledger, self._decision = referee, ledger, decision
        self._seen: list[Seen] = []

    def __len__(self) -> int:
        """How many images of a sample wait; their memory is in use."""
        return len(self._seen)

    def saw(self, image: Tensor, clean: Tensor, margin: Tensor, output: Output | Tensor) -> None:
        """Takes in one image of every sample still attacked, not yet charged.

        Args:
            image: ``(b, C, H, W)``.
            clean: ``(b, C, H, W)``.
            margin: ``(b,)`` by the copy.
            output: what it answered, detached.
        """
        left_open = self._referee.leaves_open(margin, image, output, self._decision)
        waits = left_open & ~self._ledger.now.fooled
        self._seen.append(Seen(image, margin, waits, self._ledger.spent))
        self._ledger.saw(image, clean, margin.masked_fill(left_open, torch.inf))

    def ask(self, clean: Tensor, label: Tensor, index: Tensor) -> None:
        """Asks the model itself about all that wait; before samples leave, and at the end.

        Args:
            clean: ``(b, C, H, W)`` of the samples still attacked.
            label: ``(b,)``.
            index: ``(b,)`` their ids.
        """
        seen, self._seen = self._seen, []
        if not seen:
            return
        open_ = torch.stack([each.open for each in seen]) & ~self._ledger.now.fooled
        turn, of = open_.nonzero().unbind(1)
        if not len(of):
            return
        rows = torch.split(of, turn.bincount(minlength=len(seen)).tolist())
        image = torch.cat([each.image[row] for each, row in zip(seen, rows, strict=True)])
        margin, spent = (
            torch.stack(column)[turn, of] for column in ([s.margin for s in seen], [s.spent for s in seen])
        )
        told = self._referee.told(margin, image, label[of], self._decision, index[of])
        self._ledger.saw_some(image, clean[of], told, of, spent)
        passes = torch.full_like(of, self._referee.run.engine.samples)
        self._ledger.charge(torch.zeros_like(index).index_add(0, of, passes))
