"""Is the feature space symmetric? How evenly the means of the classes are spread (Wan et al., TPAMI 2023)."""

from typing import Any

import torch
from torch import Tensor

from robustfg.evaluation.scatter import Scatter


def symmetry_of(scatter: Scatter) -> dict[str, Any] | None:
    """The distances between the means of all pairs of classes, as they stand in ``summary.json``.

    Returns:
        ``pairs``; their ``mean`` distance, ``smallest`` and ``largest``; ``variation``, the standard deviation over the
        mean, and ``smallest_to_largest``: 0 and 1 for a simplex, which is perfectly symmetric; ``noise``, the share of
        the squared distances that chance alone explains, since means of few samples lie apart even where the true ones
        coincide, over pairs of classes of two samples or more and None without one. None for all of it for fewer than
        three classes, of which any two are symmetric.
    """
    present = scatter.count > 0
    means, count, squares = scatter.means[present], scatter.count[present], scatter.squares[present]
    if len(means) < 3:
        return None
    one, other = torch.triu_indices(len(means), len(means), offset=1)
    distance = (means[one] - means[other]).norm(dim=1)
    if not bool(distance.amax() > 0):
        return None
    return {
        "pairs": len(distance),
        **{name: float(f"{float(value):.6g}") for name, value in {
            "mean": distance.mean(),
            "smallest": distance.amin(),
            "largest": distance.amax(),
            "variation": distance.std(correction=0) / distance.mean(),
            "smallest_to_largest": distance.amin() / distance.amax(),
        }.items()},
        "noise": _noise(count, squares, means),
    }  # fmt: skip


def _noise(count: Tensor, squares: Tensor, means: Tensor) -> float | None:
    """Share of the squared distances between means that would be there by sampling alone."""
    told = count > 1  # a single sample does not tell how far its class scatters
    of_mean = (squares / (count - 1) / count)[told]  # expected squared error of a mean
    distance, pairs = torch.pdist(means[told]).square().sum(), len(of_mean) * (len(of_mean) - 1) / 2
    if not bool(distance > 0):
        return None
    return float(f"{float(of_mean.mean() * 2 * pairs / distance):.6g}")
