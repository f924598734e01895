"""Who has won, by the word of the attacked model itself."""

import torch
from torch import Tensor

from robustfg.attacks.engine import Run
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
            self.run.give_up()
