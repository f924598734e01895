"""The least reading among the wrong answers of every sample, such as its least suspicious image that fools."""

import torch
from torch import Tensor

from robustfg.attacks.acceptance import Reading
from robustfg.attacks.ledger import least_of
from robustfg.types import Output, decision_margin, logits_of


class Watch:
    """Follows a reading over all that a search asks of the attacked model itself.

    Args:
        reading: what is followed, ``(n,)``.
        clean: ``(B, C, H, W)`` all samples.

    Attributes:
        least: ``(B,)``; infinite where no answer was wrong.
        image: ``(B, C, H, W)`` where that was seen; the clean image where it was not.
        margin: ``(B,)`` the decision margin there.
    """

    def __init__(self, reading: Reading, clean: Tensor) -> None:
        self.reading = reading
        wide = torch.promote_types(clean.dtype, torch.float32)
        self.least = torch.full((len(clean),), torch.inf, dtype=wide, device=clean.device)
        self.margin = torch.full_like(self.least, torch.nan)
        self.image = clean

    def saw(
        self, image: Tensor, output: Output | Tensor, label: Tensor, margin: Tensor, of: Tensor, allowed: Tensor | None
    ) -> None:
        """Takes in some answers.

        Args:
            image: ``(n, C, H, W)``.
            output: the answers, detached.
            label: ``(n,)``.
            margin: ``(n,)`` decision margins.
            of: ``(n,)`` whose they are, positions among all samples.
            allowed: ``(n,)`` which images lie in the threat model; None: all.
        """
        value = self.reading(output).to(self.least.dtype)
        lower = (value < self.least[of]) & (decision_margin(logits_of(output), label) < 0)
        if allowed is not None:
            lower = lower & allowed
        value = value.masked_fill(~lower, torch.inf)
        least, place = least_of(value, of, len(self.least))
        found, place = least < self.least, place.clamp_max(len(of) - 1)
        self.least = torch.where(found, least, self.least)
        self.margin = torch.where(found, margin[place].to(self.margin.dtype), self.margin)
        self.image = torch.where(found[:, None, None, None], image[place], self.image)
