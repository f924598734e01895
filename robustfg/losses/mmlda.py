"""Max-Mahalanobis linear discriminant analysis: cross-entropy over distances to fixed centres."""

import torch.nn.functional as F
from torch import Tensor

from robustfg.core.types import Output
from robustfg.losses.max_mahalanobis import MaxMahalanobis


class MaxMahalanobisLDA(MaxMahalanobis):
    """MM-LDA (Pang et al., "Max-Mahalanobis Linear Discriminant Analysis Networks", ICML 2018).

    L = CE(softmax_k(-factor * ||z - mu_k||^2)). ``Output.logits`` are those of factor 1/2, which decide alike.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        embedding_dim: size of a linear layer before the distances, at least K - 1; None to use the pooled feature.
        square: squared length of every centre, C_MM; 100 as released, where unit vectors are multiplied by 10.
        factor: 1 as released; 1/2 for Gaussians of unit covariance.
    """

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(2 * self.factor * output.logits, label)}
