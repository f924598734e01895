"""What an attack has found for every sample: the best image, its margin, and the passes spent."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass
class BestSoFar:
    """One row a sample, on the device of the images; ``(b,)`` where no other shape is given.

    Rows change by masks, so that no update makes the host wait for a GPU.
    """

    image: Tensor
    """``(b, C, H, W)`` the best image."""
    score: Tensor
    """What the best image is the best by, smaller is better: its margin, or its size where that is minimised."""
    margin: Tensor
    """Decision margin of the image; NaN where the model was not asked about it."""
    fooled: Tensor
    """Bool: the sample needs no better image. By the word of a surrogate copy until ``Confirmation`` has asked."""
    dead_gradient: Tensor
    """Bool: the first gradient was all zero or not finite."""
    first_success: Tensor
    """Int64: forward passes spent on the sample before the first one at which the attack had won, so 0 if the first
    pass showed it; -1 where none did. A success that only the confirmation finds counts from the passes before it. One
    that the confirmation denies does not count."""
    forwards: Tensor
    """Int64: forward passes spent, confirmations included."""
    backwards: Tensor
    """Int64: backward passes spent."""

    @classmethod
    def start(cls, clean: Tensor) -> Self:
        """Before the first pass, with the clean images ``(b, C, H, W)``."""
        score = clean.new_full((len(clean),), torch.inf, dtype=torch.promote_types(clean.dtype, torch.float32))
        none = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        return cls(clean, score, score * torch.nan, none.bool(), none.bool(), none - 1, none, none)

    def select(self, rows: Tensor) -> Self:
        """The rows at positions ``(n,)``."""
        return replace(self, **{column.name: getattr(self, column.name)[rows] for column in fields(self)})

    def write(self, rows: Tensor, other: Self) -> None:
        """Exchanges the rows at positions ``(n,)`` for those of another, ``n`` long."""
        whole = len(rows) == len(self.score)
        for column in fields(self):
            new = getattr(other, column.name)
            setattr(self, column.name, new if whole else getattr(self, column.name).index_copy(0, rows, new))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of several, one after another."""
        return cls(*(torch.cat([getattr(part, column.name) for part in parts]) for column in fields(cls)))

    def improve(self, mask: Tensor, image: Tensor, score: Tensor, margin: Tensor) -> None:
        """Exchanges the best images where ``mask`` ``(b,)`` says so; arguments as the columns, one row a sample."""
        if mask.device.type == "cpu" and bool(mask.all()):  # saves a copy of the images
            self.image, self.score, self.margin = image, score, margin
            return
        self.image = torch.where(mask[:, None, None, None], image, self.image)
        self.score = torch.where(mask, score, self.score)
        self.margin = torch.where(mask, margin, self.margin)

    def note_gradient(self, gradient: Tensor) -> None:
        """Takes in a gradient ``(b, C, H, W)``, not yet counted; each sample's first one decides if it is dead."""
        low, high = gradient.amin((1, 2, 3)), gradient.amax((1, 2, 3))  # NaN where any value is
        alive = ((low < 0) | (high > 0)) & low.isfinite() & high.isfinite()
        self.dead_gradient = torch.where(self.backwards == 0, ~alive, self.dead_gradient)
