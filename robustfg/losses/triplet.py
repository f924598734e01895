"""Triplet loss beside the cross-entropy: a sample nearer to its own class than to any other, by a margin."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.types import Output
from robustfg.losses.softmax import Softmax


def hardest(distance: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Farthest positive and nearest negative of every anchor (Hermans et al. 2017, batch hard).

    Args:
        distance: ``(B, B)``.
        same: ``(B, B)``, whether two samples share a class.

    Returns:
        The distances of positive and negative, ``(n,)`` each; infinite where an anchor has none.
    """
    positive = same & ~_itself(same)
    return distance.masked_fill(~positive, -torch.inf).amax(1), distance.masked_fill(same, torch.inf).amin(1)


def semi_hard(distance: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """For every pair of one class the nearest negative beyond the positive, else the farthest (Schroff et al. 2015)."""
    positive = same & ~_itself(same)
    negative = distance.masked_fill(same, torch.inf).sort(1).values
    first_beyond = torch.searchsorted(negative.detach(), distance.detach(), right=True)
    beyond = F.pad(negative, (0, 1), value=torch.inf).gather(1, first_beyond)
    farthest = distance.masked_fill(same, -torch.inf).amax(1, keepdim=True)
    return distance[positive], torch.where(beyond.isinf(), farthest, beyond)[positive]


def _itself(same: Tensor) -> Tensor:
    return torch.eye(len(same), dtype=torch.bool, device=same.device)


MINING: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"hard": hardest, "semi_hard": semi_hard}


class Triplet(Softmax):
    """Softmax and a triplet loss on unit-length embeddings: L = CE + weight * mean max(0, margin + d_ap - d_an).

    Triplets are found inside a batch, and under DDP inside a process's share of it.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer before the distances; None for none.
        label_smoothing: of the cross-entropy.
        weight: of the triplet term.
        margin: between the distances; squared Euclidean distances of unit vectors lie in [0, 4].
        mining: ``"hard"`` (Hermans et al. 2017) or ``"semi_hard"`` (Schroff et al. 2015).
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        label_smoothing: float = 0.0,
        weight: float = 1.0,
        margin: float = 0.2,
        mining: str = "semi_hard",
    ) -> None:
        super().__init__(
            channels=channels, num_classes=num_classes, embedding_dim=embedding_dim, label_smoothing=label_smoothing
        )
        refuse_outside("loss.weight", weight, least=0)
        refuse_outside("loss.margin", margin, least=0, most=4)
        if mining not in MINING:
            raise UserError(f"loss.mining must be one of {', '.join(MINING)}, got {mining}")
        self.coefficients = {"triplet": weight}
        self.margin, self.mining = margin, mining

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        entropy = super().loss(output, label)["loss"]
        # Never in half precision: a distance is a small difference of large numbers.
        with torch.autocast(label.device.type, enabled=False):
            unit = F.normalize(output.embedding.float(), dim=1)
            distance = (2 - 2 * unit @ unit.t()).clamp_min(0)
        positive, negative = MINING[self.mining](distance, label[:, None] == label)
        known = negative.isfinite() & positive.isfinite()
        losses = (self.margin + positive - negative)[known].clamp_min(0)
        triplet = losses.sum() / max(len(losses), 1)
        total = entropy + self.coefficients["triplet"] * triplet
        return {"loss": total, "cross_entropy": entropy, "triplet": triplet}
