"""Who has won, by the word of the attacked model itself where the arithmetic of a fast copy leaves it open."""

import torch
from torch import Tensor

from robustfg.attacks.engine import Run
from robustfg.attacks.objectives import Margin, Objective
from robustfg.attacks.trial import trial_images
from robustfg.types import Output, logits_of

CAUTION = 8
"""Margins are open up to so many times the largest error measured: about eight standard deviations."""
LEAD = 2
"""Times the largest error measured, to aim at."""


class Referee:
    """Tells decision margins whose signs are the attacked model's own.

    A copy's margin is open where it is nearer to 0 than ``CAUTION`` times the largest difference to the model's own on
    the trial images, in the decision's own units, or than the highest logit's resolution (where a margin is near 0,
    that is the true one's, too). There the model itself is asked. So neither the scale of the logits nor a number added
    to all of them nor a class far off matters, and no success is given up. These passes are counted, and come on top of
    what an attack may spend.

    Args:
        run: the model, and what is searched on.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._errors: Tensor | None = None  # (2,): of the decision, and of how far a logit leads

    def margins(
        self, image: Tensor, output: Output | Tensor, label: Tensor, decision: Objective, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Margins ``(n,)``, and for whom the model itself was asked, ``(n,)`` bool; None: for nobody.

        A margin on whose sign both agree stays the copy's.

        Args:
            image: ``(n, C, H, W)``.
            output: what ``run`` answered, detached.
            label: ``(n,)``.
            decision: positive where the attacker has won.
            index: ``(n,)`` sample ids.
        """
        margin = -decision(output, label)
        if self.run.itself is None or not len(label):
            return margin, None
        left_open = self.leaves_open(margin, image, output, decision)
        rows = left_open.nonzero().flatten()
        if not len(rows):
            return margin, None
        ids = None if index is None else index[rows]
        return margin.index_copy(0, rows, self.told(margin[rows], image[rows], label[rows], decision, ids)), left_open

    def leaves_open(self, margin: Tensor, image: Tensor, output: Output | Tensor, decision: Objective) -> Tensor:
        """Which of the copy's margins ``(n,)`` may have the wrong sign, ``(n,)`` bool; arguments as ``margins``."""
        if self._errors is None:
            self._errors = self._measured(trial_images(image), decision)
        return margin.abs() <= CAUTION * self._error(output)[0]

    def told(
        self, seen: Tensor, image: Tensor, label: Tensor, decision: Objective, index: Tensor | None = None
    ) -> Tensor:
        """Margins ``(n,)`` after the model itself was asked about all images: those ``seen`` if the sign is right."""
        own = -decision(self.run.own(image, index), label)
        return torch.where((own < 0) == (seen < 0), seen, own.to(seen.dtype))

    def doubt(self, output: Output | Tensor) -> Tensor:
        """How far a logit must lead another one by the copy's account to lead it in the model itself, ``(n,)``."""
        return LEAD * self._error(output)[1]

    def _error(self, output: Output | Tensor) -> Tensor:
        """How far the decision and a logit's lead may be off, ``(2, n)``."""
        logits = logits_of(output).detach()
        errors = logits.new_zeros(2) if self._errors is None else self._errors.to(logits.dtype)
        return torch.maximum(errors[:, None], torch.finfo(logits.dtype).eps * logits.amax(1).abs())

    @torch.no_grad()
    def _measured(self, image: Tensor, decision: Objective) -> Tensor:
        """The largest errors of the decision and of a logit's lead on some images, ``(2,)``; nobody counts this."""
        index = torch.arange(len(image), device=image.device)
        own, seen = self.run.own(image, index), self.run(image, index)
        label = logits_of(own).argmax(1)
        told = [(-by(own, label) + by(seen, label)).abs().nan_to_num().amax() for by in (decision, Margin())]
        return torch.stack(told)
