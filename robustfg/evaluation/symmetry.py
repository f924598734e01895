"""Is the feature space symmetric? How evenly the means of the classes are spread (Wan et al., TPAMI 2023)."""

from typing import Any

import torch

from robustfg.evaluation.scatter import Scatter


def symmetry_of(scatter: Scatter) -> dict[str, Any] | None:
    """The distances between the means of all pairs of classes, as they stand in ``summary.json``.

    Returns:
        ``pairs``; their ``mean`` distance, ``smallest`` and ``largest``; ``variation``, the standard deviation over the
        mean, and ``smallest_to_largest``: 0 and 1 for a simplex, which is perfectly symmetric; ``noise``, the share of
        a squared distance, on average, that chance alone explains, since means of few samples lie apart even where the
        true ones coincide. None for fewer than three classes, of which any two are symmetric.
    """
    present = scatter.count > 0
    means, count, squares = scatter.means[present], scatter.count[present], scatter.squares[present]
    if len(means) < 3:
        return None
    one, other = torch.triu_indices(len(means), len(means), offset=1)
    distance = (means[one] - means[other]).norm(dim=1)
    if not bool(distance.amax() > 0):
        return None
    of_mean = squares / (count - 1).clamp_min(1) / count  # expected squared error of a mean
    return {
        "pairs": len(distance),
        **{name: float(f"{float(value):.6g}") for name, value in {
            "mean": distance.mean(),
            "smallest": distance.amin(),
            "largest": distance.amax(),
            "variation": distance.std(correction=0) / distance.mean(),
            "smallest_to_largest": distance.amin() / distance.amax(),
            "noise": (of_mean[one] + of_mean[other]).mean() / distance.square().mean(),
        }.items()},
    }  # fmt: skip
