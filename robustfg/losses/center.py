"""Centre loss: cross-entropy, and every feature close to its class's centre."""

from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.centers import Centers
from robustfg.losses.softmax import Softmax


class Center(Softmax):
    """Softmax with the centre loss of Wen et al. (ECCV 2016): L = CE + weight * mean 1/2 ||x - c_y||^2.

    The gradient of a centre is divided by ``weight``, so that its learning rate keeps its meaning.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer before the centres; None for none.
        label_smoothing: of the cross-entropy.
        weight: of the centre term.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        label_smoothing: float = 0.0,
        weight: float = 0.003,
    ) -> None:
        super().__init__(
            channels=channels, num_classes=num_classes, embedding_dim=embedding_dim, label_smoothing=label_smoothing
        )
        if weight <= 0:
            raise UserError(f"loss.weight must be > 0, got {weight}; loss=softmax is the loss without centres")
        self.coefficients = {"center": weight}
        self.centers = Centers(num_classes=num_classes, dim=self.embedding.dim, pace=1 / weight)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """``head`` and ``centers``."""
        return {
            "head": [*self.embedding.parameters(), *self.classifier.parameters()],
            "centers": [self.centers.vectors],
        }

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        entropy = super().loss(output, label)["loss"]
        center = self.centers.to_own(output.embedding, label).mean() / 2
        total = entropy + self.coefficients["center"] * center
        return {"loss": total, "cross_entropy": entropy, "center": center}

    def anomaly(self, output: Output) -> Tensor:
        """Squared distance to the predicted class's centre."""
        return self.centers.to_own(output.embedding, output.logits.argmax(1))
