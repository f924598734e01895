"""The Max-Mahalanobis centre loss: the squared distance to a fixed centre, without any softmax."""

from torch import Tensor

from robustfg.core.types import Output
from robustfg.losses.max_mahalanobis import MaxMahalanobis


class MaxMahalanobisCenter(MaxMahalanobis):
    """MMC (Pang et al., "Rethinking Softmax Cross-Entropy Loss for Adversarial Robustness", ICLR 2020).

    L = factor * mean ||z - mu_y||^2. The nearest centre decides.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        embedding_dim: size of a linear layer before the distances, at least K - 1; None to use the pooled feature.
        square: squared length of every centre, C_MM; 100 as released, where unit vectors are multiplied by 10.
        factor: 1 as released, 1/2 in the paper.
    """

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        own = self.means[label]
        return {"loss": self.factor * (output.embedding.to(own.dtype) - own).square().sum(1).mean()}
