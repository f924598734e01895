"""The attacked model's own word on what a search on a surrogate copy has found."""

import torch
from torch import Tensor

from robustfg.attacks.batch.best_so_far import BestSoFar
from robustfg.attacks.objectives.logits import Objective
from robustfg.attacks.runtime.engine import Run
from robustfg.core.types import Output, logits_of


class Confirmation:
    """Asks the model itself about every sample that a surrogate copy has answered for, once before it leaves.

    The question is about the best image, if its margin is the copy's, and else about the image last asked of the copy.
    So a success of the copy counts only if it is one of the model, and a success that the copy has missed is found. A
    copy that answers otherwise than the model is given up. These passes are counted, beyond what an attack may spend.

    Args:
        run: the model, and the copy that is searched on.
        decision: positive where the attacker has won.
        samples: ``(B,)`` positions of the samples, from 0.

    Attributes:
        differs: ``(B,)`` bool, the samples that the copy has misjudged, by more than rounding or to the end. An
            attack that was not successful for them is repeated on the model itself.
    """

    def __init__(self, run: Run, decision: Objective, samples: Tensor) -> None:
        self.run, self.decision, self._samples = run, decision, samples
        self.differs = torch.zeros_like(samples, dtype=torch.bool)
        self._by_copy = torch.zeros_like(self.differs)  # (b,) whether the best image's margin is the copy's
        self._best: Tensor | None = None  # (b, K) the copy's logits of the best images
        self._last: tuple[Tensor, Tensor] | None = None  # images and logits that a copy answered last

    def record(self, image: Tensor | None, output: Output | Tensor, improved: Tensor) -> None:
        """Takes in an answer to one image of every active sample, detached.

        Args:
            image: ``(b, C, H, W)``; None where some samples were not asked about.
            output: the answer.
            improved: ``(b,)`` bool, the samples whose best image this now is.
        """
        if not self.run.surrogate_used:
            return
        if self.run.by_model:
            self._by_copy = self._by_copy & ~improved
            return
        logits = logits_of(output)
        self._by_copy = self._by_copy | improved
        self._best = logits if self._best is None else torch.where(improved[:, None], logits, self._best)
        self._last = self._last if image is None else (image, logits)

    def select(self, rows: Tensor) -> None:
        """Goes on with the active samples at positions ``(n,)``."""
        self._samples, self._by_copy = self._samples[rows], self._by_copy[rows]
        self._best = None if self._best is None else self._best[rows]
        self._last = None if self._last is None else (self._last[0][rows], self._last[1][rows])

    @torch.no_grad()
    def check(self, mask: Tensor, best: BestSoFar, label: Tensor, index: Tensor, *, final: bool) -> None:
        """Asks the model itself and corrects ``best``: a sample whose success the model denies is no longer fooled.

        Args:
            mask: ``(b,)`` bool, the active samples in question.
            best: of the active samples, changed.
            label: ``(b,)``.
            index: ``(b,)`` sample ids.
            final: the search for these samples is over. Else only the copy's successes are in question.
        """
        compares = final and self._last is not None
        rows = (mask & (self._by_copy | (~best.fooled & compares))).nonzero().flatten()
        if not len(rows):
            return
        assert self._best is not None  # a copy has answered
        found, by_copy, image, seen = best.select(rows), self._by_copy[rows], best.image[rows], self._best[rows]
        if compares and self._last is not None:
            image = torch.where(by_copy[:, None, None, None], image, self._last[0][rows])
            seen = torch.where(by_copy[:, None], seen, self._last[1][rows])
        own = self.run.own(image, index[rows])
        margin = -self.decision(own, label[rows]).to(found.margin.dtype)
        wrong = margin < 0
        denied = found.fooled & ~wrong
        differs = self.run.differs(logits_of(own), seen)
        if bool(differs.any()):
            self.run.drop_surrogate()
        self.differs[self._samples[rows]] |= differs | (denied & final)
        found.improve(by_copy | (margin < found.margin), image, margin, margin)
        first = found.first_success.masked_fill(denied, -1)
        found.first_success = torch.where(wrong & (first < 0), found.forwards, first)
        found.fooled = wrong
        found.forwards = found.forwards + self.run.engine.samples
        best.write(rows, found)
