"""A head of fixed, equally distant centres; the nearest one decides."""

from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import Embedding, LossModule
from robustfg.losses.explain import class_activation
from robustfg.losses.gaussian import gaussian_logits
from robustfg.losses.simplex import simplex


class MaxMahalanobis(LossModule):
    """Max-Mahalanobis centres (Pang et al. 2018 and 2020); the subclasses say by what the feature is trained.

    The logits are -D_k / 2 with D_k the squared distance to centre k, as those of the Gaussian mixture.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        embedding_dim: size of a linear layer before the distances, at least K - 1; None to use the pooled feature.
        square: squared length of every centre, C_MM.
        factor: what D is multiplied by in the loss.

    Attributes:
        means: ``(K, D)`` the centres, a buffer.
    """

    means: Tensor

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = 256,
        square: float = 100.0,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        for option, value in {"square": square, "factor": factor}.items():
            if not value > 0:
                raise UserError(f"loss.{option} must be > 0, got {value}")
        self.factor = factor
        self.embedding = Embedding(channels, embedding_dim)
        self.register_buffer("means", simplex(num_classes, self.embedding.dim, square).float())

    def forward(self, feature_map: Tensor) -> Output:
        embedding = self.embedding(feature_map)
        return Output(logits=gaussian_logits(embedding, self.means), embedding=embedding)

    def anomaly(self, output: Output) -> Tensor:
        """Squared distance to the predicted class's centre, min_k D_k, without cancellation."""
        return (output.embedding - self.means[output.logits.argmax(1)]).square().sum(1)

    def evidence(self, feature_map: Tensor, output: Output) -> dict[str, Tensor]:
        """The class-activation map of the linear layer that the distances are up to a constant of the sample."""
        weight = self.embedding.pulled_back(self.means)
        return {"cam": class_activation(feature_map, weight, output.logits.argmax(1))}
