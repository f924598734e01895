"""Softmax cross-entropy on a linear layer: the baseline."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import Embedding, LossModule
from robustfg.losses.explain import class_activation


class Softmax(LossModule):
    """A linear classifier on the pooled feature, trained by cross-entropy.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer in between; None for none.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016), in [0, 1).
    """

    def __init__(
        self, *, channels: int, num_classes: int, embedding_dim: int | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"loss.label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.embedding = Embedding(channels, embedding_dim)
        self.classifier = nn.Linear(self.embedding.dim, num_classes)

    @classmethod
    def around(cls, classifier: nn.Linear) -> "Softmax":
        """The head of a finished network: its own last layer."""
        head = cls(channels=classifier.in_features, num_classes=classifier.out_features)
        head.classifier = classifier
        return head

    def forward(self, feature_map: Tensor) -> Output:
        embedding = self.embedding(feature_map)
        return Output(logits=self.classifier(embedding), embedding=embedding)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(output.logits, label, label_smoothing=self.label_smoothing)}

    def evidence(self, feature_map: Tensor, output: Output) -> dict[str, Tensor]:
        weight = self.embedding.pulled_back(self.classifier.weight)
        return {"cam": class_activation(feature_map, weight, output.logits.argmax(1))}
