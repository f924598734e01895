"""Answers that decide nothing, read together for the first mistake of every sample."""

from torch import Tensor

from robustfg.attacks.ledger import Ledger
from robustfg.attacks.objectives import Margin, Objective
from robustfg.types import Output, joined, logits_of

TOGETHER = 8
"""Answers read at once: one by one it costs half as much as a small network's pass."""


class Notes:
    """What a search is told about images of which only the last will be its result.

    Args:
        ledger: where the first mistakes are written.
        decision: positive where the attacker has won.
        samples: passes an answer took, charged already.
    """

    def __init__(self, ledger: Ledger, decision: Objective, samples: int) -> None:
        self._ledger, self._decision, self._samples = ledger, decision, samples
        self._unread: list[Output | Tensor] = []

    def add(self, output: Output | Tensor, label: Tensor) -> None:
        """Notes an answer, detached, about all samples still attacked, whose classes are ``label`` ``(b,)``."""
        self._unread.append(logits_of(output) if self._decision == Margin() else output)
        if len(self._unread) == TOGETHER:
            self.read(label)

    def read(self, label: Tensor) -> None:
        """Reads what was noted; before samples leave, and at the end."""
        if self._unread:
            turns = len(self._unread)
            margin = -self._decision(joined(self._unread), label.repeat(turns))
            self._ledger.noted((margin < 0).view(turns, -1), self._samples)
            self._unread = []
