"""What one round of an attack is given, and what it returns."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from robustfg.attacks.runtime.validation import checked, classes_of


@dataclass(frozen=True)
class Attempt:
    """Where ``B`` samples stand after one restart.

    A sample fooled in an earlier restart was not attacked again: it keeps that image, and its counts are 0.
    """

    image: Tensor
    """``(B, C, H, W)``, inside the threat model."""
    margin: Tensor
    """``(B,)`` decision margin the search saw there, negative where it succeeded; NaN where it did not look."""
    first_success: Tensor
    """``(B,)`` int64, forward passes before the first wrong prediction; -1 where none was seen."""
    forwards: Tensor
    """``(B,)`` int64, forward passes spent."""
    backwards: Tensor
    """``(B,)`` int64, backward passes spent."""
    dead_gradient: Tensor
    """``(B,)`` bool: the first gradient was all zero or not finite."""
    logits: Tensor | None = None
    """``(B, K)`` logits of the clean images, where this or an earlier round has asked for them; NaN where not."""
    least: Tensor | None = None
    """``(B,)`` the smallest value of the watched reading among all wrong predictions seen in this round and before,
    whatever the decision; infinite where none was wrong. None: nothing is watched."""


@dataclass(frozen=True)
class Task:
    """The samples that are attacked, checked and safe for autograd."""

    image: Tensor
    """``(B, C, H, W)`` in [0, 1]."""
    label: Tensor
    """``(B,)`` true classes."""
    index: Tensor
    """``(B,)`` sample ids."""
    draw: int
    """Asks for other random numbers on the same samples."""
    logits: Tensor | None
    """``(B, K)`` logits of the clean images, where known."""
    classes: int = 0
    """How many classes the labels ask for, at least."""

    @classmethod
    @torch.inference_mode(False)
    def of(cls, image: Tensor, label: Tensor, index: Tensor | None, *, draw: int, logits: Tensor | None) -> Self:
        """Copies of the caller's tensors. Raises ``UserError`` for what ``classes_of`` refuses."""
        classes = classes_of(image, label, index)
        if logits is not None:
            checked(logits, len(label), classes)
        ids = torch.arange(len(label), device=label.device) if index is None else index
        image, label, ids = (tensor.detach().clone() for tensor in (image, label, ids))
        return cls(image, label, ids, draw, None if logits is None else logits.detach().clone(), classes)

    def part(self, rows: Tensor) -> Self:
        """Some of the samples, by their positions."""
        if len(rows) == len(self.label):
            return self
        logits = None if self.logits is None else self.logits[rows]
        return replace(self, image=self.image[rows], label=self.label[rows], index=self.index[rows], logits=logits)
