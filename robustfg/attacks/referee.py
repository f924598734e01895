"""Who has won, by the word of the attacked model itself."""

import torch
from torch import Tensor

from robustfg.attacks.engine import Run
from robustfg.attacks.ledger import Ledger
from robustfg.attacks.objectives import Objective
from robustfg.types import Output, logits_of


class Referee:
    """Asks the model itself about what a copy calls a success, and about every sample before it leaves.

    These passes are counted, and come on top of what an attack may spend. Where copy and model answer otherwise, the
    copy is given up, and the samples are ``doubted``: an attack tries them again without a copy.

    Args:
        run: the model, and what is searched on.
        index: ``(B,)`` ids of all samples.

    Attributes:
        doubted: ``(B,)`` bool.
    """

    def __init__(self, run: Run, index: Tensor) -> None:
        self.run, self.index = run, index
        self.doubted = torch.zeros_like(index, dtype=torch.bool)
        self._last: tuple[Tensor, Tensor] | None = None  # images and logits that a copy answered last

    def margins(
        self, image: Tensor, output: Output | Tensor, label: Tensor, decision: Objective, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Margins ``(n,)``, and for which images the model itself was asked besides, ``(n,)`` bool; None: for none.

        Args:
            image: ``(n, C, H, W)``.
            output: what ``run`` answered last, detached.
            label: ``(n,)``.
            decision: positive where the attacker has won.
            rows: ``(n,)`` whose they are, positions among all samples.
        """
        margin = -decision(output, label)
        if self.run.own_word:
            return margin, None
        wrong = margin < 0
        at = wrong.nonzero().flatten()
        if not len(at):
            return margin, None
        told = self.told(image[at], logits_of(output)[at], label[at], decision, rows[at])
        return margin.index_copy(0, at, told.to(margin.dtype)), wrong

    def told(self, image: Tensor, seen: Tensor, label: Tensor, decision: Objective, rows: Tensor) -> Tensor:
        """The model's own margins ``(n,)`` of images that a copy has answered with the logits ``seen`` ``(n, K)``."""
        own = self.run.own(image, self.index[rows])
        self.note(self.run.otherwise(logits_of(own), seen), rows)
        return -decision(own, label)

    def note(self, otherwise: Tensor, rows: Tensor) -> None:
        """Doubts those of the samples ``rows`` ``(n,)`` for which a copy answered ``otherwise`` ``(n,)``."""
        if bool(otherwise.any()):
            self.doubted[rows[otherwise]] = True
            if not self.run.own_word:
                self.run.give_up()

    def answered(self, image: Tensor, output: Output | Tensor, ledger: Ledger) -> None:
        """Keeps what a copy said of every sample still attacked, ``(b, C, H, W)``, where no best image is kept."""
        compared = ledger.minimum or not ledger.keeps
        self._last = (image, logits_of(output)) if compared and not self.run.own_word else None

    def keep(self, rows: Tensor) -> None:
        """Lets the samples go that ``rows`` ``(n,)``, places among those still attacked, does not name."""
        self._last = None if self._last is None else (self._last[0][rows], self._last[1][rows])

    def conclude(self, rows: Tensor, label: Tensor, decision: Objective, ledger: Ledger) -> None:
        """Asks the model itself about samples that end without a success on a copy.

        Where the smallest margin is kept, about that image, which may be a success that the copy has not seen;
        elsewhere about the image last asked about. In both cases the copy must have answered alike.

        Args:
            rows: ``(n,)`` places among the samples still attacked.
            label: ``(b,)`` of those.
            decision: positive where the attacker has won.
            ledger: of the samples.
        """
        if not self.run.copied:
            return
        rows = rows[~ledger.now.fooled[rows]]
        if not len(rows):
            return
        keeps = ledger.keeps and not ledger.minimum
        image, index, seen = ledger.now.image[rows], self.index[ledger.rows[rows]], None
        if not keeps and self._last is not None:
            image, seen = self._last[0][rows], self._last[1][rows]
        elif (told := self.run.again(image, index)) is not None:
            seen = logits_of(told)
        own = self.run.own(image, index)
        if seen is None:  # the copy has failed
            self.doubted[ledger.rows[rows]] = True
        else:
            self.note(self.run.otherwise(logits_of(own), seen), ledger.rows[rows])
        if keeps:
            ledger.told(rows, -decision(own, label[rows]))
        ledger.charge(torch.zeros_like(label).index_fill(0, rows, self.run.engine.samples))
