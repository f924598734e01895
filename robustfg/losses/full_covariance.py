"""Covariances with all correlations."""

import torch
from torch import Tensor, nn

from robustfg.losses.covariance import Covariance
from robustfg.losses.variances import FLOOR, REMAINDER, Variances


class Full(Covariance):
    """Sigma_k = floor I + U_k diag(v_k) U_k', with a unit lower triangular U_k and v_k > 0.

    The floor is added before the Cholesky factorisation L_k L_k' = Sigma_k, so that it bounds every eigenvalue. A floor
    on the diagonal of L_k would bound the determinant alone: classes could still be driven apart without end, and for
    nothing, by ever stronger correlations.

    Args:
        num_classes: K.
        dim: D; memory grows with its square, and with K as well unless tied.
        tied: one covariance for all classes.
        initial: the covariance is that many times the identity at first.
        floor: smallest variance in any direction.
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
        # In float64: in float32 the factorisation fails where variances differ by seven digits.
        factors: Tensor = torch.linalg.cholesky(self.matrices().double())
        return factors.to(self.lower.dtype)

    def exponents_by_class(self, embedding: Tensor, means: Tensor) -> Tensor:
        differences = (embedding - means[:, None]).transpose(1, 2)
        white = torch.linalg.solve_triangular(self.factors(), differences, upper=False)
        squared: Tensor = white.square().sum(1).t()
        return -0.5 * squared

    def whitened(self, rows: Tensor) -> Tensor:
        white: Tensor = torch.linalg.solve_triangular(self.factors()[0], rows.t(), upper=False).t()
        return white

    def matrices(self) -> Tensor:
        floor, (rows, columns) = self.variances.floor, self._below()
        eye = torch.eye(self.dim, dtype=self.lower.dtype, device=self.lower.device)
        unit = eye.repeat(self.count, 1, 1)
        unit[:, rows, columns] = self.lower
        return (unit * (self.variances.values() - floor)[:, None]) @ unit.transpose(1, 2) + floor * eye

    def log_determinants(self) -> Tensor:
        return 2 * self.factors().diagonal(dim1=1, dim2=2).log().sum(1)

    def outer(self, rows: Tensor) -> Tensor:
        return rows.t() @ rows

    @torch.no_grad()
    def become(self, spread: Tensor) -> None:
        """Sets the covariances from estimates ``(count, D, D)``; the floor and a remainder are added."""
        eye = torch.eye(self.dim, dtype=torch.float64, device=spread.device)
        remainder = REMAINDER * (self.variances.initial - self.variances.floor)
        factors = torch.linalg.cholesky(spread.double() + remainder * eye)
        diagonal, (rows, columns) = factors.diagonal(dim1=1, dim2=2), self._below()
        self.variances.become(diagonal.square() + self.variances.floor)
        self.lower.copy_((factors / diagonal[:, None])[:, rows, columns])

    def _below(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.dim, self.dim, offset=-1, device=self.lower.device)
        return rows, columns
