"""The lowest score among the wrong answers of every sample, such as that of its least suspicious image that fools."""

import torch
from torch import Tensor

from robustfg.attacks.objectives.acceptance import Reading
from robustfg.core.types import Output, decision_margin, logits_of


def lowest_by_sample(value: Tensor, of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The lowest of each sample's values ``(count,)``, and the first position of it among all values.

    Infinite where a sample has no value; the position then means nothing, but is a valid one.

    Args:
        value: ``(n,)``, not NaN, n > 0.
        of: ``(n,)`` the sample of each value.
        count: number of samples.
    """
    lowest = value.new_full((count,), torch.inf).scatter_reduce(0, of, value, "amin")
    position = torch.arange(len(of), device=of.device).masked_fill(value != lowest[of], len(of) - 1)
    return lowest, torch.full((count,), len(of) - 1, device=of.device).scatter_reduce(0, of, position, "amin")


def sum_by_sample(value: Tensor, of: Tensor, count: int) -> Tensor:
    """The sum of each sample's flags or numbers, ``(count,)`` int64; arguments as ``lowest_by_sample``."""
    return torch.zeros(count, dtype=torch.int64, device=of.device).index_add(0, of, value.long())


class LowestScore:
    """Follows a score over all images that a search evaluates on the attacked model itself.

    Args:
        reading: the score, ``(n,)``.
        clean: ``(B, C, H, W)`` all samples.

    Attributes:
        value: ``(B,)``; infinite where no answer was wrong.
        image: ``(B, C, H, W)`` where the lowest score was read; the clean image where no answer was wrong.
        margin: ``(B,)`` the decision margin there.
    """

    def __init__(self, reading: Reading, clean: Tensor) -> None:
        self.reading = reading
        wide = torch.promote_types(clean.dtype, torch.float32)
        self.value = torch.full((len(clean),), torch.inf, dtype=wide, device=clean.device)
        self.margin = torch.full_like(self.value, torch.nan)
        self.image = clean

    def record(
        self, image: Tensor, output: Output | Tensor, label: Tensor, margin: Tensor, of: Tensor, allowed: Tensor
    ) -> None:
        """Takes in some answers.

        Args:
            image: ``(n, C, H, W)``.
            output: the model's answers, detached.
            label: ``(n,)``.
            margin: ``(n,)`` decision margins.
            of: ``(n,)`` the sample of each image, as a position among all samples.
            allowed: ``(n,)`` bool, which images count.
        """
        value = self.reading(output).to(self.value.dtype)
        lower = allowed & (value < self.value[of]) & (decision_margin(logits_of(output), label) < 0)
        lowest, position = lowest_by_sample(value.masked_fill(~lower, torch.inf), of, len(self.value))
        found = lowest < self.value
        self.value = torch.where(found, lowest, self.value)
        self.margin = torch.where(found, margin[position].to(self.margin.dtype), self.margin)
        self.image = torch.where(found[:, None, None, None], image[position], self.image)
