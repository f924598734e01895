"""The vertices of a regular simplex: classes as far from one another as a given length allows."""

import math

import torch
from torch import Tensor

from robustfg.core.errors import UserError


def simplex(num_classes: int, dim: int, square: float) -> Tensor:
    """K points of squared length ``square`` around the origin, any two of which have the inner product -square/(K-1).

    These are the Max-Mahalanobis centres (Pang et al. 2018 and 2020), the K points with the largest smallest distance
    among all of that length. Their recursion, which places one centre after the other, is the Cholesky factorisation
    of the matrix of inner products and has a closed form: coordinate j is
    l_j = sqrt(square K (K-1-j) / ((K-1) (K-j))) at point j and -l_j / (K-1-j) at all later ones, from j = 0.

    Args:
        num_classes: K, at least 2.
        dim: D of the points; K - 1 coordinates are used, the others are 0.
        square: squared length of every point.

    Returns:
        ``(K, D)`` float64.
    """
    if num_classes < 2:
        raise UserError(f"loss: centres apart need two classes at least, the data have {num_classes}")
    if dim < num_classes - 1:
        raise UserError(
            f"loss.embedding_dim must be >= {num_classes - 1}, the number of classes less one, for equally distant "
            f"centres; got {dim}"
        )
    points = torch.zeros(num_classes, dim, dtype=torch.float64)
    for j in range(num_classes - 1):
        left = num_classes - 1 - j
        length = math.sqrt(square * num_classes * left / ((num_classes - 1) * (left + 1)))
        points[j, j] = length
        points[j + 1 :, j] = -length / left
    return points
