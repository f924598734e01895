"""Covariances without correlations: diagonal, and isotropic."""

import torch
from torch import Tensor

from robustfg.losses.covariance import Covariance
from robustfg.losses.gaussian import gaussian_logits
from robustfg.losses.variances import FLOOR, Variances


class Diagonal(Covariance):
    """Sigma_k = diag(v_k1, ..., v_kD).

    Args:
        num_classes: K.
        dim: D.
        tied: one covariance for all classes.
        initial: every variance at first.
        floor: smallest variance.
    """

    different = True

    def __init__(
        self, *, num_classes: int, dim: int, tied: bool = False, initial: float = 1.0, floor: float = FLOOR
    ) -> None:
        super().__init__(num_classes=num_classes, dim=dim, tied=tied)
        self.variances = Variances(self.count, dim if self.different else 1, initial=initial, floor=floor)

    def exponents_by_class(self, embedding: Tensor, means: Tensor) -> Tensor:
        # Two matrix products instead of B x K x D differences; seen from the middle, terms that cancel are small.
        middle, precision = means.detach().mean(0), self.variances.values().reciprocal()
        x, mu = embedding - middle, means - middle
        weighted = mu * precision
        return x @ weighted.t() - 0.5 * (x.square() @ precision.t() + (weighted * mu).sum(1))

    def whitened(self, rows: Tensor) -> Tensor:
        scaled: Tensor = rows * self.variances.values().rsqrt()
        return scaled

    def matrices(self) -> Tensor:
        return torch.diag_embed(self.variances.values().expand(-1, self.dim))

    def log_determinants(self) -> Tensor:
        return self.variances.values().expand(-1, self.dim).log().sum(1)

    def outer(self, rows: Tensor) -> Tensor:
        return rows.square().sum(0)

    def become(self, spread: Tensor) -> None:
        self.variances.become(spread)


class Isotropic(Diagonal):
    """Sigma_k = v_k I. Arguments as for ``Diagonal``."""

    different = False

    def exponents_by_class(self, embedding: Tensor, means: Tensor) -> Tensor:
        return gaussian_logits(embedding, means) / self.variances.values()[:, 0]

    def become(self, spread: Tensor) -> None:
        self.variances.become(spread.mean(1, keepdim=True))
