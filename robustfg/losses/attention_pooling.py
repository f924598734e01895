"""Attentional pooling trained by cross-entropy: Girdhar & Ramanan (NeurIPS 2017)."""

import torch.nn.functional as F
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import LossModule
from robustfg.models.attention import AttentionalPooling, attention_map, is_dead


class AttentionPooling(LossModule):
    """The attention head of ``MaximalSeparation`` by itself.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        dropout: share of features hidden from the class maps in training.
        std: standard deviation of the initial weights.
    """

    def __init__(self, *, channels: int, num_classes: int, dropout: float = 0.8, std: float = 1e-3) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"loss.dropout must be in [0, 1), got {dropout}")
        if std <= 0:
            raise UserError(f"loss.std must be > 0, got {std}")
        self.attention = AttentionalPooling(
            channels=channels, num_classes=num_classes, dropout=dropout, dropout_in_maps=False, std=std
        )

    def forward(self, feature_map: Tensor) -> Output:
        logits, class_maps = self.attention(feature_map)
        # The maps only show what was looked at; nothing divides by their maximum in training.
        maps = {"attention": attention_map(class_maps, 1e-12), "class_attention": class_maps}
        return Output(logits=logits, embedding=feature_map.mean((2, 3)), maps=maps)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        dead = is_dead(output.maps["attention"]).float().mean()
        return {"loss": F.cross_entropy(output.logits, label), "dead_maps": dead}
