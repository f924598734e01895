"""Answers that are looked at as they come."""

import torch
from torch import Tensor

from robustfg.attacks.ledger import Ledger
from robustfg.attacks.objectives import Objective
from robustfg.attacks.referee import Referee
from robustfg.attacks.watch import Watch
from robustfg.types import Output


class AtOnce:
    """Tells the ledger and the watch what a search is told.

    Args:
        referee: who asks the model itself, where anything is kept.
        ledger: of the samples.
        decision: positive where the attacker has won.
        watch: what follows a reading; None: nothing does.
    """

    def __init__(self, referee: Referee, ledger: Ledger, decision: Objective, watch: Watch | None) -> None:
        self._referee, self._ledger, self._decision, self._watch = referee, ledger, decision, watch

    def saw(
        self,
        image: Tensor,
        output: Output | Tensor,
        *,
        clean: Tensor,
        label: Tensor,
        of: Tensor | None,
    ) -> tuple[Tensor, Tensor | int]:
        """Takes in answers that are not yet charged.

        Args:
            image: ``(n, C, H, W)``, one of every sample still attacked, or several where ``of`` says whose.
            output: the answers, detached.
            clean: ``(n, C, H, W)`` theirs.
            label: ``(n,)``.
            of: ``(n,)`` places among the samples still attacked.

        Returns:
            Decision margins ``(n,)``; and the passes to be charged, ``(b,)`` or of everybody.
        """
        ledger, samples = self._ledger, self._referee.run.engine.samples
        asked = None
        if ledger.keeps:
            rows = ledger.rows if of is None else ledger.rows[of]
            margin, asked = self._referee.margins(image, output, label, self._decision, rows)
        else:
            margin = -self._decision(output, label)
        margin = margin.to(ledger.now.margin.dtype)
        passes: Tensor | int = samples if asked is None else samples + samples * asked.long()
        if self._watch is not None:
            self._watched(self._watch, image, output, clean, label, margin, of)
        if of is None:
            ledger.saw(image, clean, margin)
            return margin, passes
        ledger.saw_some(image, clean, margin, of)
        each = passes if isinstance(passes, Tensor) else torch.full_like(of, passes)
        return margin, torch.zeros_like(ledger.now.forwards).index_add(0, of, each)

    def _watched(
        self,
        watch: Watch,
        image: Tensor,
        output: Output | Tensor,
        clean: Tensor,
        label: Tensor,
        margin: Tensor,
        of: Tensor | None,
    ) -> None:
        """Shows the watch what was asked."""
        ledger = self._ledger
        rows = ledger.rows if of is None else ledger.rows[of]
        allowed = None
        if ledger.minimum:  # those also look outside the ball
            allowed = ledger.threat.size(image.double() - clean.double()) <= ledger.threat.radius
        if ledger.resting:  # nobody watches those who only wait to be let go
            here = ledger.standing(torch.ones_like(ledger.now.fooled))
            here = here if of is None else here[of]
            allowed = here if allowed is None else allowed & here
        watch.saw(image, output, label, margin, rows, allowed)
