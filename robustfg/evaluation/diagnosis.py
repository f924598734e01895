"""Do attacks succeed where classes lie close in the latent space? Rank correlations and how sure they are."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from robustfg.evaluation.aggregation import correct_per_sample, worst_rows
from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.separation import Distances

DRAWS = 999
Values = NDArray[np.float64]


def closeness_and_success(table: pa.Table, attacks: list[str], distances: Distances) -> dict[str, Any]:
    """Spearman's correlation of closeness with attack success, over samples that are right when clean.

    - ``samples``: minus the distance of a sample's clean embedding to the nearest other class's centre, against
      whether any attack of the suite fools it. ``ci95`` from a bootstrap over classes, whose samples are alike.
    - ``pairs``: minus the distance between the centres of two classes, against the share of the first one's samples
      that end up in the second under the worst attack. ``p``, one-sided, from permuting the classes (Mantel 1967).

    ``rho`` is None where one of the two does not vary, such as when every sample is fooled.
    """
    right = correct_per_sample(table, [CLEAN])
    fooled = right & ~correct_per_sample(table, attacks)
    target = column(table, "prediction")[worst_rows(table, attacks)]
    label, classes = distances.label, len(distances.between)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (label[fooled], target[fooled]), 1)
    attacked = np.bincount(label[right], minlength=classes)
    present = np.flatnonzero((attacked > 0) & ~np.isnan(distances.between).all(1))
    shares = counts[np.ix_(present, present)] / attacked[present][:, None]
    return {
        "samples": _over_samples(-distances.foreign[right], fooled[right].astype(float), label[right]),
        "pairs": _over_pairs(-distances.between[np.ix_(present, present)], shares),
    }


def spearman(one: Values, other: Values) -> float | None:
    """Spearman's rank correlation, ties by mean ranks; None where one of the two is constant."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (one, other)]
    lengths = [np.sqrt((rank**2).sum()) for rank in ranks]
    return float(ranks[0] @ ranks[1] / (lengths[0] * lengths[1])) if min(lengths) > 0 else None


def _over_samples(closeness: Values, success: Values, label: NDArray[np.int64]) -> dict[str, Any]:
    found: dict[str, Any] = {"rho": spearman(closeness, success) if len(label) else None, "ci95": None, "n": len(label)}
    if found["rho"] is None:
        return found
    generator = np.random.default_rng(0)
    members = [np.flatnonzero(label == k) for k in np.unique(label)]
    drawn = []
    for _ in range(DRAWS):
        rows = np.concatenate([members[k] for k in generator.integers(0, len(members), len(members))])
        drawn.append(spearman(closeness[rows], success[rows]))
    told = [rho for rho in drawn if rho is not None]
    return found | {"ci95": [round(float(end), 4) for end in np.quantile(told, (0.025, 0.975))] if told else None}


def _over_pairs(closeness: Values, success: Values) -> dict[str, Any]:
    classes = len(closeness)
    apart = ~np.eye(classes, dtype=bool)
    found: dict[str, Any] = {"rho": spearman(closeness[apart], success[apart]) if classes > 1 else None, "p": None,
                             "n": int(apart.sum())}  # fmt: skip
    if found["rho"] is None:
        return found
    generator = np.random.default_rng(0)
    near, often = np.zeros((2, classes, classes))
    near[apart], often[apart] = (rankdata(values[apart]) - (apart.sum() + 1) / 2 for values in (closeness, success))
    # Most pairs share one value, and near sums to 0: only the others tell one order of the classes from another.
    values, counts = np.unique(often[apart], return_counts=True)
    one, other = np.nonzero(apart & (often != values[counts.argmax()]))
    excess = often[one, other] - values[counts.argmax()]
    observed = near[one, other] @ excess
    at_least = 0
    for _ in range(DRAWS):
        order = generator.permutation(classes)
        at_least += int(near[order[one], order[other]] @ excess >= observed - 1e-9 * abs(observed))
    return found | {"p": (at_least + 1) / (DRAWS + 1)}
