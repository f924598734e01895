"""Covariances with all correlations."""

import torch
from torch import Tensor, nn

from robustfg.losses.covariance import Covariance
from robustfg.losses.variances import FLOOR, Variances


class Full(Covariance):
    """Sigma_k = L_k L_k', with a lower triangular L_k (Cholesky).

    The squared diagonal of L_k holds the variance of each dimension given those before it; the floor is theirs.

    Args:
        num_classes: K.
        dim: D; memory grows with its square, and with K as well unless tied.
        tied: one covariance for all classes.
        initial: the covariance is that many times the identity at first.
        floor: smallest conditional variance.
    """

    def __init__(
        self, *, num_classes: int, dim: int, tied: bool = False, initial: float = 1.0, floor: float = FLOOR
    ) -> None:
        super().__init__(num_classes=num_classes, dim=dim, tied=tied)
        self.needed = dim
        self.variances = Variances(self.count, dim, initial=initial, floor=floor)
        self.lower = nn.Parameter(torch.zeros(self.count, dim * (dim - 1) // 2))

    def factors(self) -> Tensor:
        """L, ``(count, D, D)``."""
        rows, columns = self._below()
        factors = torch.diag_embed(self.variances.values().sqrt())
        factors[:, rows, columns] = self.lower
        return factors

    def exponents_by_class(self, embedding: Tensor, means: Tensor) -> Tensor:
        differences = (embedding - means[:, None]).transpose(1, 2)
        white = torch.linalg.solve_triangular(self.factors(), differences, upper=False)
        squared: Tensor = white.square().sum(1).t()
        return -0.5 * squared

    def whitened(self, rows: Tensor) -> Tensor:
        white: Tensor = torch.linalg.solve_triangular(self.factors()[0], rows.t(), upper=False).t()
        return white

    def matrices(self) -> Tensor:
        factors = self.factors()
        return factors @ factors.transpose(1, 2)

    def log_determinants(self) -> Tensor:
        return self.variances.values().log().sum(1)

    def outer(self, rows: Tensor) -> Tensor:
        return rows.t() @ rows

    @torch.no_grad()
    def become(self, spread: Tensor) -> None:
        # Estimates from few samples are singular; the floor added, every conditional variance is above it.
        eye = torch.eye(self.dim, dtype=torch.float64, device=spread.device)
        factors = torch.linalg.cholesky(spread.double() + self.variances.floor * eye)
        rows, columns = self._below()
        self.variances.become(factors.diagonal(dim1=1, dim2=2).square())
        self.lower.copy_(factors[:, rows, columns])

    def _below(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.dim, self.dim, offset=-1, device=self.lower.device)
        return rows, columns
