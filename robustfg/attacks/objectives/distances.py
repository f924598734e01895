"""Objectives of heads that decide by distance: towards the nearest centre or prototype of a wrong class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.attacks.objectives.heads import head_of
from robustfg.core.errors import UserError
from robustfg.core.types import Output, logits_of


def wrong_maximum(scores: Tensor, label: Tensor, per_class: int = 1) -> Tensor:
    """The largest score of a wrong class, ``(B,)``.

    Args:
        scores: ``(B, K * per_class)``, those of a class side by side.
        label: ``(B,)`` true classes.
        per_class: scores of every class.
    """
    own = torch.arange(scores.shape[1], device=scores.device) // per_class == label[:, None]
    return scores.masked_fill(own, -torch.inf).amax(1)


@dataclass(frozen=True)
class NearestWrongCentre:
    """Minus the squared distance to the nearest wrong centre: the LKD attack of MCAT (TPAMI 2023, released code).

    For heads whose logits are -D_k / 2, such as the Gaussian-mixture head: maximises -min_{k != y} D_k, wherever the
    own centre is. It never saturates, and it may stall where a wrong centre's ball overlaps the own one's.
    """

    name = "nearest_wrong_centre"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return 2 * wrong_maximum(logits_of(output), label)


@dataclass(frozen=True, kw_only=True)
class NearestWrongPrototype:
    """The largest similarity to a prototype of a wrong class, for heads that compare patches with prototypes.

    A similarity log((d + 1) / (d + eps)), as in ProtoPNet, is nearly flat far away (slope 0.009 at d = 10); a head that
    holds minus distances gives the attack the prototype distance itself.

    Args:
        head: name in ``Output.heads`` of the similarities ``(B, K * per_class)``, those of a class side by side.
        per_class: prototypes of every class.
    """

    head: str
    per_class: int = 1
    name = "nearest_wrong_prototype"

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise UserError(f"per_class must be >= 1, got {self.per_class}")

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        similarity = head_of(output, self.head)
        classes = logits_of(output).shape[1]
        if similarity.shape[1] != classes * self.per_class:
            raise UserError(
                f"per_class: head {self.head!r} holds {similarity.shape[1]} similarities, "
                f"not {self.per_class} for each of {classes} classes"
            )
        return wrong_maximum(similarity, label, self.per_class)


@dataclass(frozen=True)
class WrongConfidence:
    """log max_{k != y} p_k: confidence in a wrong class, as the attack of CCAT maximises it (Stutz et al. 2020).

    The logarithm rises exactly as the probability does, and has a gradient also where that is too small for float32.
    """

    name = "wrong_confidence"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return wrong_maximum(logits_of(output).log_softmax(1), label)
