"""A head of scaled cosines, whose losses ask a margin of the true class's angle."""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import Embedding, LossModule
from robustfg.losses.explain import class_activation


class Cosine(LossModule):
    """Logits s cos(theta_k) of the angles between feature and class weights, trained with a margin on the true one.

    The margin is part of the loss alone: the output's logits, which decide and which are attacked, have none.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer before the cosines; None for none.
        scale: s.
    """

    def __init__(self, *, channels: int, num_classes: int, embedding_dim: int | None, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise UserError(f"loss.scale must be > 0, got {scale}")
        self.scale = scale
        self.embedding = Embedding(channels, embedding_dim)
        self.weight = nn.Parameter(torch.randn(num_classes, self.embedding.dim) / math.sqrt(self.embedding.dim))

    def forward(self, feature_map: Tensor) -> Output:
        embedding = self.embedding(feature_map)
        # Never in half precision: s = 64 would make its rounding of a cosine a quarter of a logit.
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = F.normalize(embedding.to(self.weight.dtype)) @ F.normalize(self.weight).t()
            return Output(logits=self.scale * cosine, embedding=embedding)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        own = label[:, None]
        narrowed = self.scale * self.narrowed(output.logits.gather(1, own) / self.scale)
        return {"loss": F.cross_entropy(output.logits.scatter(1, own, narrowed), label)}

    @abstractmethod
    def narrowed(self, cosine: Tensor) -> Tensor:
        """What stands for the true class's cosine in the loss; any shape."""

    def anomaly(self, output: Output) -> Tensor:
        """Cosine distance to the predicted class's weight, 1 - cos(theta), in [0, 2]."""
        return 1 - output.logits.amax(1) / self.scale

    def evidence(self, feature_map: Tensor, output: Output) -> dict[str, Tensor]:
        """The class-activation map of the unit weights; the feature's length changes no decision and is left in."""
        weight = self.embedding.pulled_back(F.normalize(self.weight))
        return {"cam": class_activation(feature_map, weight, output.logits.argmax(1))}
