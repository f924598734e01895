"""Prototype conformity loss: features near their own class's centre and far from the others', at two depths."""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import Embedding, LossModule
from robustfg.losses.centers import Centers


class PrototypeConformity(LossModule):
    """The loss of Mustafa et al. (ICCV 2019), on the pooled feature and on a hidden layer behind it.

    L = CE + sum over both of [near * mean ||x - c_y||^2 - far * mean_k ||x - c'_k||^2]. As released, the centres c that
    features are drawn to and the centres c' that they are driven from are learned apart, and the gradients of both are
    divided by their terms' weights. It reached 32 % against the attacks of its authors and 0.3 % against AutoAttack.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K, at least 2.
        embedding_dim: size of a linear layer after pooling; None for none.
        hidden_dim: size of the hidden layer; 1024 for CIFAR.
        near: weight of the distances to the own centre.
        far: weight of the distances to the others'.
        between_centers: add the mean squared distance of the own c' to the others to the far term, as the paper has it
            and the released code has not.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        hidden_dim: int = 1024,
        near: float = 1.0,
        far: float = 1e-4,
        between_centers: bool = False,
    ) -> None:
        super().__init__()
        for option, value in {"near": near, "far": far}.items():
            if value <= 0:
                raise UserError(f"loss.{option} must be > 0, got {value}")
        self.coefficients = {"near": near, "far": far}
        self.between_centers = between_centers
        self.embedding = Embedding(channels, embedding_dim)
        self.hidden = nn.Linear(self.embedding.dim, hidden_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)
        dims = (self.embedding.dim, hidden_dim)
        self.near = nn.ModuleList(Centers(num_classes=num_classes, dim=dim, pace=1 / near) for dim in dims)
        self.far = nn.ModuleList(Centers(num_classes=num_classes, dim=dim, pace=1 / far) for dim in dims)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """``head``, and the centres of both terms, ``near`` and ``far``."""
        layers = (self.embedding, self.hidden, self.classifier)
        return {
            "head": [parameter for layer in layers for parameter in layer.parameters()],
            "near": list(self.near.parameters()),
            "far": list(self.far.parameters()),
        }

    def forward(self, feature_map: Tensor) -> Output:
        embedding = self.embedding(feature_map)
        return Output(logits=self.classifier(self.hidden(embedding)), embedding=embedding)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        features = (output.embedding, self.hidden(output.embedding))
        entropy = F.cross_entropy(output.logits, label)
        near, far = entropy.new_zeros(()), entropy.new_zeros(())
        centers = zip(features, cast(Iterable[Centers], self.near), cast(Iterable[Centers], self.far), strict=True)
        for feature, own, others in centers:
            near = near + own.to_own(feature, label).mean()
            far = far + others.to_others(feature, label).mean()
            if self.between_centers:
                far = far + others.between(label).mean()
        total = entropy + self.coefficients["near"] * near - self.coefficients["far"] * far
        return {"loss": total, "cross_entropy": entropy, "near": near, "far": far}
