"""The least reading among the wrong answers of every sample, such as its least suspicious image that fools."""

import torch
from torch import Tensor

from robustfg.attacks.acceptance import Reading
from robustfg.attacks.engine import Run
from robustfg.attacks.ledger import least_of
from robustfg.attacks.objectives import Margin
from robustfg.attacks.referee import Referee
from robustfg.types import Output, decision_margin, logits_of, mapped


class Watch:
    """Follows a reading over all that a search asks.

    Whether an answer is wrong is the attacked model's own word, as of every ``Referee``. If the search runs on a copy,
    readings are the copy's until ``conclude`` asks the model itself about the images that are told.

    Args:
        reading: what is followed, ``(n,)``.
        run: the model.
        clean: ``(B, C, H, W)`` all samples.
        index: ``(B,)`` their ids.

    Attributes:
        least: ``(B,)``; infinite where no answer was wrong.
        image: ``(B, C, H, W)`` where that was seen; the clean image where it was not.
        margin: ``(B,)`` the decision margin there.
    """

    def __init__(self, reading: Reading, run: Run, clean: Tensor, index: Tensor) -> None:
        self.reading, self.run, self.index = reading, run, index
        self._referee = Referee(run)
        wide = torch.promote_types(clean.dtype, torch.float32)
        self.least = torch.full((len(clean),), torch.inf, dtype=wide, device=clean.device)
        self.margin = torch.full_like(self.least, torch.nan)
        self.image = clean

    def saw(
        self, image: Tensor, output: Output | Tensor, label: Tensor, margin: Tensor, of: Tensor, allowed: Tensor | None
    ) -> Tensor | None:
        """Takes in some answers; says for which the model itself was asked, ``(n,)`` bool, None: for none.

        Args:
            image: ``(n, C, H, W)``.
            output: the answers, detached.
            label: ``(n,)``.
            margin: ``(n,)`` decision margins.
            of: ``(n,)`` whose they are, positions among all samples.
            allowed: ``(n,)`` which images lie in the threat model; None: all.
        """
        value = self.reading(output).to(self.least.dtype)
        lower = value < self.least[of]
        if allowed is not None:
            lower = lower & allowed
        wrong, asked = self._wrong(image, output, label, lower, of)
        value = value.masked_fill(~(lower & wrong), torch.inf)
        least, place = least_of(value, of, len(self.least))
        found, place = least < self.least, place.clamp_max(len(of) - 1)
        self.least = torch.where(found, least, self.least)
        self.margin = torch.where(found, margin[place].to(self.margin.dtype), self.margin)
        self.image = torch.where(found[:, None, None, None], image[place], self.image)
        return asked

    def conclude(self) -> Tensor:
        """Replaces readings of a copy by the model's own; the rows of whom it was asked about, ``(n,)``."""
        rows = self.least.isfinite().nonzero().flatten()
        if self.run.itself is None or not len(rows):
            return rows[:0]
        own = self.reading(self.run.own(self.image[rows], self.index[rows])).to(self.least.dtype)
        self.least = self.least.index_copy(0, rows, own)
        return rows

    def _wrong(
        self, image: Tensor, output: Output | Tensor, label: Tensor, lower: Tensor, of: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Who is wrong of those whose reading is ``lower``."""
        if self.run.itself is None:
            return decision_margin(logits_of(output), label) < 0, None
        rows = lower.nonzero().flatten()
        some = mapped(output, lambda value: value[rows])
        margin, asked = self._referee.margins(image[rows], some, label[rows], Margin(), self.index[of[rows]])
        everyone = torch.zeros_like(lower)
        wrong = everyone.index_copy(0, rows, margin < 0)
        return wrong, None if asked is None else everyone.index_copy(0, rows, asked)
