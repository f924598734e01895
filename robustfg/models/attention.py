"""Attentional pooling: where a class is seen, and how much of it."""

import torch.nn.functional as F
from torch import Tensor, nn


class AttentionalPooling(nn.Module):
    """Rank-one bilinear pooling (Girdhar & Ramanan, NeurIPS 2017): what stands out, times what a class looks like.

    Logit k is the mean over positions of ca_t * cs_kt, where ca is a class-agnostic map and cs_k a map of class k, both
    1x1 convolutions with bias of the rectified features.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        dropout: share of features hidden from the class maps in training.
        dropout_in_maps: False hides them only where the logits are computed, so that the maps are not random.
        std: initial weights are normal with this deviation and biases 0; None for PyTorch's own initialisation.
    """

    def __init__(
        self, *, channels: int, num_classes: int, dropout: float, dropout_in_maps: bool, std: float | None = None
    ) -> None:
        super().__init__()
        self.agnostic = nn.Conv2d(channels, 1, 1)
        self.specific = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout(dropout)
        self.dropout_in_maps = dropout_in_maps
        if std is not None:
            for layer in (self.agnostic, self.specific):
                nn.init.normal_(layer.weight, std=std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, K)`` and the products ca_t * cs_kt ``(B, K, h, w)`` of a feature map ``(B, C, h, w)``."""
        features = feature_map.relu()
        agnostic, shown = self.agnostic(features), self.dropout(features)
        maps = agnostic * self.specific(shown if self.dropout_in_maps else features)
        if self.dropout_in_maps or not self.training:
            return maps.mean((2, 3)), maps
        pooled = (agnostic * shown).mean((2, 3))  # the class maps are linear: their mean needs no second set of maps
        logits = F.linear(pooled, self.specific.weight.flatten(1)) + agnostic.mean((2, 3)) * self.specific.bias
        return logits, maps


def attention_map(class_maps: Tensor, epsilon: float) -> Tensor:
    """The largest of the rectified class maps, divided by its own largest value: ``(B, K, h, w)`` to ``(B, 1, h, w)``.

    Args:
        class_maps: products ca_t * cs_kt.
        epsilon: the divisor is at least this, so that an image without a positive product gets a map of zeros. 0
            divides zero by zero there.
    """
    largest = class_maps.amax(1, keepdim=True).relu()
    return largest / largest.amax((2, 3), keepdim=True).clamp_min(epsilon)


def is_dead(maps: Tensor) -> Tensor:
    """Whether maps ``(B, …)`` are nowhere positive or not finite, ``(B,)``."""
    cells = maps.flatten(1)
    return ~(cells.isfinite().all(1) & (cells > 0).any(1))
