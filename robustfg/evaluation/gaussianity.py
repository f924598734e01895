"""Is the embedding of every class Gaussian? Mardia's tests, and distances against their law."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, chi2, kstest
from torch import Tensor

from robustfg.evaluation.gather import gathered, summed
from robustfg.evaluation.ks_chance import of_whitened
from robustfg.evaluation.mardia import FEWEST, Mardia, of_moments
from robustfg.evaluation.scatter import Scatter
from robustfg.evaluation.separation import Embeddings

DIRECTIONS = 8
"""Most directions that are looked at: third moments grow with their cube, what the tests can tell does not."""
PER_DIRECTION = 4
"""Samples of the smallest tested class for every direction."""
FLAT = 1e-9
"""A class whose smallest variance is this share of its largest one, or less, has no covariance to whiten by."""
LEVEL = 0.05
QUANTILES = 50
Values = NDArray[np.float64]


def gaussianity_of(embeddings: Embeddings, scatter: Scatter, classes: Sequence[str]) -> dict[str, Any] | None:
    """The tests and the distances as they stand in ``summary.json``; every process must ask.

    Each class is looked at along the same few principal directions of the scatter within classes. Choosing directions
    by the scatter leaves the laws under the hypothesis as they are, however few samples there are: a whitened Gaussian
    sample is independent of its covariance.

    Args:
        embeddings: of the evaluated split.
        scatter: theirs.
        classes: their names.

    Returns:
        ``dimensions``, ``directions`` and ``held``, the share of the scatter along them; ``classes`` with the
        statistics by name; for ``skewness`` and ``kurtosis``, how many classes were ``rejected`` at 5 % of how many
        ``tested``; ``too_few`` and ``flat``, the classes that could not be tested; ``distances``, see ``against_law``.
        None where no class can be tested.
    """
    axes, along = scatter.principal()
    large = scatter.count >= FEWEST
    if not bool(large.any()) or not len(along):
        return None
    directions = min(DIRECTIONS, len(along), int(scatter.count[large].min()) // PER_DIRECTION)
    axes = axes[:, :directions]
    embedding, label, index = embeddings.own()
    chosen = large[label]
    label, index = label[chosen], index[chosen]
    away = (embedding[chosen].double() - scatter.means[label]) @ axes
    found, distance, curved = _whitened(away, label, scatter.count)
    told = {k: found[k] for k in found if bool(curved[k])}
    if not told:
        return None
    own = curved[label]
    parts = gathered((index[own].numpy(), label[own].numpy(), distance[own].numpy()))
    ids, labels, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(ids)
    return {
        "dimensions": len(scatter.within),
        "directions": directions,
        "held": float(along[:directions].sum() / along.sum()),
        "too_few": int((~large).sum()),
        "flat": int((large & ~curved).sum()),
        **{name: _rejections([getattr(mardia, f"{name}_p") for mardia in told.values()]) for name in _STATISTICS},
        "distances": against_law(
            undone(distances[order], scatter.count.numpy()[labels[order]], directions),
            directions,
            chance=of_whitened([mardia.n for mardia in told.values()], directions),
        ),
        "classes": {classes[k]: _class(mardia) for k, mardia in told.items()},
    }  # fmt: skip


_STATISTICS = ("skewness", "kurtosis")


def _whitened(away: Tensor, label: Tensor, count: Tensor) -> tuple[dict[int, Mardia], Tensor, Tensor]:
    """The statistics of every class, squared distances ``(n,)`` of this process's samples, and who has a covariance.

    Args:
        away: ``(n, d)`` from the class's mean.
        label: ``(n,)``.
        count: ``(K,)`` samples of every class over all processes.
    """
    d, rows = away.shape[1], {int(k): (label == k).nonzero().flatten() for k in (count >= FEWEST).nonzero().flatten()}
    second = torch.zeros(len(count), d, d, dtype=torch.float64)
    for k, own in rows.items():
        second[k] = away[own].T @ away[own]
    second = summed(second) / count.clamp_min(1)[:, None, None]
    values, vectors = torch.linalg.eigh(second)
    curved = (values[:, 0] > FLAT * values[:, -1]) & (values[:, -1] > 0)
    third, fourth = torch.zeros(len(count), d, d, d, dtype=torch.float64), torch.zeros(len(count), dtype=torch.float64)
    distance = torch.zeros(len(label), dtype=torch.float64)
    for k, own in rows.items():
        if bool(curved[k]):
            z = away[own] @ vectors[k] / values[k].sqrt()
            distance[own] = z.square().sum(1)
            third[k] = torch.einsum("na,nb,nc->abc", z, z, z)
            fourth[k] = distance[own].square().sum()
    third, fourth = summed(third), summed(fourth)
    sizes = {k: int(count[k]) for k in rows}
    found = {k: of_moments(n, (third[k] / n).numpy(), float(fourth[k] / n)) for k, n in sizes.items()}
    return found, distance, curved


def undone(distance: Values, n: Values, d: int) -> Values:
    """Squared distances as they would be had mean and covariance been known, so that chi-square is their exact law.

    By the same sample's mean and covariance (divided by n), a Gaussian's squared distance over n - 1 follows
    Beta(d / 2, (n - d - 1) / 2) (Gnanadesikan and Kettenring, Biometrics 1972); it is mapped quantile by quantile.

    Args:
        distance: ``(N,)``.
        n: ``(N,)`` samples of the sample's class.
        d: number of directions.
    """
    share = np.clip(distance / (n - 1), 0, 1)
    upper = beta.sf(share, d / 2, (n - d - 1) / 2)
    found: Values = chi2.isf(np.maximum(upper, np.finfo(float).tiny), d)
    return found


def against_law(distance: Values, d: int, *, chance: float) -> dict[str, Any]:
    """Squared distances against chi-square with ``d`` degrees of freedom.

    Args:
        distance: ``(n,)``.
        d: number of dimensions.
        chance: what ``ks`` exceeds for 5 % of Gaussian data sets.

    Returns:
        ``n``; ``ks``, the largest difference of the two distribution functions (Kolmogorov and Smirnov), and
        ``ks_chance``; ``mean_ratio``, mean distance over ``d``; ``qq``, quantiles ``expected`` and ``found`` at the
        same probabilities.
    """
    n = len(distance)
    probability = (np.arange(min(QUANTILES, n)) + 0.5) / min(QUANTILES, n)
    expected, found = chi2.ppf(probability, d), np.quantile(distance, probability, method="hazen")
    return {
        "n": n,
        "ks": float(kstest(distance, chi2(d).cdf).statistic),
        "ks_chance": chance,
        "mean_ratio": float(distance.mean() / d),
        "qq": {"expected": _rounded(expected), "found": _rounded(found)},
    }


def _rejections(p: list[float]) -> dict[str, Any]:
    return {"rejected": sum(value < LEVEL for value in p), "tested": len(p), "expected": LEVEL * len(p)}


def _class(mardia: Mardia) -> dict[str, Any]:
    return {
        "n": mardia.n,
        "skewness": float(f"{mardia.skewness:.6g}"),
        "skewness_p": float(f"{mardia.skewness_p:.3g}"),
        "kurtosis": float(f"{mardia.kurtosis:.6g}"),
        "kurtosis_p": float(f"{mardia.kurtosis_p:.3g}"),
        "kurtosis_if_gaussian": float(f"{mardia.expected_kurtosis:.6g}"),
    }


def _rounded(values: Values) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
