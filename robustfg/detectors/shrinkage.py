"""Covariances that can be inverted."""

import torch
from torch import Tensor

RIDGE = 1e-6
"""First share of the mean variance that is added where a covariance is singular, and tenfold as long as that fails:
with less, the rounding of float32 features would decide."""


def oas_share(covariance: Tensor, count: float) -> float:
    """Oracle approximating shrinkage (Chen et al. 2010, eq. 23): the share of a sphere for ``count`` Gaussian samples.

    Ledoit & Wolf's share needs fourth moments about the class means, that is a second look at the data.
    """
    dim = len(covariance)
    squares, variance = float(covariance.square().sum()), float(covariance.trace())
    numerator = (1 - 2 / dim) * squares + variance**2
    denominator = (count + 1 - 2 / dim) * (squares - variance**2 / dim)
    return 1.0 if denominator <= 0 else min(1.0, numerator / denominator)


def shrunk(covariance: Tensor, count: float, share: float | None) -> Tensor:
    """Mixed with the sphere of equal mean variance: (1 - share) S + share tr(S)/D I.

    Args:
        covariance: S, ``(D, D)`` float64.
        count: number of samples it was estimated from.
        share: in [0, 1]; None: ``oas_share``.
    """
    share = oas_share(covariance, count) if share is None else share
    variance = covariance.diagonal().mean()
    sphere = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device) * variance
    return torch.lerp(covariance, sphere, share)


def whitening(covariance: Tensor) -> Tensor:
    """W with W S W^T = I, lower triangular, ``(D, D)`` float64.

    A singular S gets the smallest ridge of ``RIDGE``, ten times that … of its mean variance with which it can be
    factorised; a zero S (all samples of a class alike) counts as I.
    """
    covariance = (covariance + covariance.t()) / 2
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variance = covariance.diagonal().mean()
    if not variance > 0:
        return eye
    factor, failed = torch.linalg.cholesky_ex(covariance)
    ridge = RIDGE
    while failed or factor.diagonal().min().square() < RIDGE / 10 * variance:
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * variance * eye)
        ridge *= 10
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse
