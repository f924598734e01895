"""How far apart the classes lie in the latent space, and whether attacks succeed where they lie close.

Nakka and Salzmann (ACCV 2020) hold that fine-grained classifiers are easy to attack because features of different
classes lie close together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfg.evaluation.gather import gathered

Values = NDArray[np.float64]
Ids = NDArray[np.int64]
BLOCK = 1024


class Embeddings:
    """The clean embeddings of this process's samples.

    They stay where they were found: processes exchange sums over classes ``(K, D)`` in float64 and four numbers a
    sample. A process keeps its own ``N / world`` embeddings in float32 on the CPU.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, embedding: Tensor, label: Tensor, index: Tensor) -> None:
        """Keeps those of a batch: ``(B, D)``, ``(B,)`` and ``(B,)``."""
        self._parts.append((embedding.float().cpu(), label.cpu(), index.cpu()))

    def own(self) -> tuple[Tensor, Tensor, Tensor]:
        """This process's: embeddings ``(n, D)`` float32, labels ``(n,)`` and ids ``(n,)``."""
        embedding, label, index = (torch.cat(column) for column in zip(*self._parts, strict=True))
        return embedding, label, index

    def part(self, mask: Tensor) -> "Embeddings":
        """Those of ``own`` that ``mask`` ``(n,)`` names."""
        embedding, label, index = self.own()
        some = Embeddings()
        some.add(embedding[mask], label[mask], index[mask])
        return some

    def means(self, num_classes: int) -> tuple[Tensor, Tensor]:
        """Samples ``(K,)`` and mean embedding ``(K, D)`` of every class over all processes, float64.

        NaN where a class has no sample. Every process must ask.
        """
        embedding, label, _ = self.own()
        count = torch.bincount(label, minlength=num_classes).double()
        sums = torch.zeros(num_classes, embedding.shape[1], dtype=torch.float64)
        sums.index_add_(0, label, embedding.double())
        shares = gathered((count, sums))
        count, sums = (torch.stack(column).sum(0) for column in zip(*shares, strict=True))
        return count, sums / count[:, None]

    def distances(self, num_classes: int) -> "Distances":
        """The distances among samples and class centres; every process must ask, and all get the same."""
        embedding, label, index = self.own()
        centres = self.means(num_classes)[1]
        own, foreign, nearest = _to_centres(embedding, label, centres)
        parts = gathered((index.numpy(), label.numpy(), own, foreign, nearest))
        index_all, label_all, own_all, foreign_all = (
            np.concatenate([part[column] for part in parts]) for column in range(4)
        )
        order = np.argsort(index_all)
        return Distances(
            index=index_all[order],
            label=label_all[order],
            own=own_all[order],
            foreign=foreign_all[order],
            intruder=np.minimum.reduce([part[4] for part in parts]),
            between=torch.cdist(centres, centres).numpy(),
        )


class Distances:
    """Euclidean distances among samples and class centres, the means of the test samples' embeddings.

    Args:
        index: ``(N,)`` the samples' ids, ascending.
        label: ``(N,)``.
        own: ``(N,)`` from every sample to its class's centre.
        foreign: ``(N,)`` from every sample to the nearest other class's centre.
        intruder: ``(K,)`` from every centre to the nearest sample of another class.
        between: ``(K, K)`` between centres; NaN for classes without samples.
    """

    def __init__(
        self, *, index: Ids, label: Ids, own: Values, foreign: Values, intruder: Values, between: Values
    ) -> None:
        self.index, self.label, self.own, self.foreign = index, label, own, foreign
        self.intruder, self.between = intruder, between

    def per_class(self) -> dict[str, Values]:
        """For every class, ``(K,)`` each; NaN where a class has too few samples to tell.

        - ``nearest``: the class whose centre is nearest, and ``centre_distance``, how far that is.
        - ``spread``: root mean square distance of its samples to its centre; ``radius``: the largest one.
        - ``intruder``: smallest distance of another class's sample to its centre.
        - ``separation``: intruder / radius. Over 1, a ball around the centre holds all of the class and nothing else.
        """
        others = np.where(np.eye(len(self.between), dtype=bool) | np.isnan(self.between), np.inf, self.between)
        known = np.isfinite(others.min(1))
        members = np.bincount(self.label, minlength=len(known))
        squares = np.bincount(self.label, self.own**2, minlength=len(known))
        radius = np.zeros(len(known))
        np.maximum.at(radius, self.label, self.own)
        told = members > 1
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "nearest": np.where(known, others.argmin(1), np.nan),
                "centre_distance": np.where(known, others.min(1), np.nan),
                "spread": np.where(told, np.sqrt(squares / members), np.nan),
                "radius": np.where(told, radius, np.nan),
                "intruder": np.where(known, self.intruder, np.nan),
                "separation": np.where(told & known & (radius > 0), self.intruder / radius, np.nan),
            }


def separation_of(distances: Distances, classes: Sequence[str], groups: Sequence[str] | None) -> dict[str, Any]:
    """The classes' separation as it stands in ``summary.json``.

    Args:
        distances: of the evaluated split.
        classes: their names.
        groups: the genus of every class, where one is known.

    Returns:
        ``classes``, the numbers of ``Distances.per_class`` by name; ``separated`` of ``n`` classes with a separation
        over 1, the ``smallest`` and the ``median`` one; per genus the same, and how many of its classes have their
        nearest one inside the genus, with ``expected_nearest_inside``, how many if any other class that has samples
        were as likely.
    """
    found = distances.per_class()
    values = found["separation"]
    per_class: dict[str, dict[str, Any]] = {
        name: {"nearest": None if np.isnan(found["nearest"][k]) else classes[int(found["nearest"][k])]}
        | {measure: _number(found[measure][k]) for measure in found if measure != "nearest"}
        for k, name in enumerate(classes)
    }
    summary = {**_overall(values), "classes": per_class}
    if groups is None:
        return summary
    genera, nearest = np.asarray(groups), found["nearest"]
    near = np.array([not np.isnan(k) and genera[int(k)] == genera[own] for own, k in enumerate(nearest)])
    known = ~np.isnan(nearest)  # the others have no sample, and can be nearest to none
    per_genus = {}
    for genus in dict.fromkeys(genera.tolist()):
        inside, members = genera == genus, int(known[genera == genus].sum())
        per_genus[str(genus)] = _overall(values[inside]) | {
            "nearest_inside": int(near[inside].sum()),
            "expected_nearest_inside": members * (members - 1) / max(int(known.sum()) - 1, 1),
        }
    return summary | {"groups": per_genus}


def _overall(separation: Values) -> dict[str, Any]:
    known = separation[~np.isnan(separation)]
    return {
        "separated": int((known > 1).sum()),
        "n": len(known),
        "smallest": _number(known.min()) if len(known) else None,
        "median": _number(np.median(known)) if len(known) else None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.6g}")


def _to_centres(embedding: Tensor, label: Tensor, centres: Tensor) -> tuple[Values, Values, Values]:
    """Distance of every sample to its own and to the nearest other centre; of every centre to its nearest other sample.

    In float64 and in blocks of samples, so that no more than ``BLOCK`` times ``K`` distances are held.
    """
    own, foreign = [], []
    intruder = torch.full((len(centres),), torch.inf, dtype=torch.float64)
    present = ~centres.isnan().any(1)
    for block, true in zip(torch.split(embedding, BLOCK), torch.split(label, BLOCK), strict=True):
        distance = torch.cdist(block.double(), centres)
        own.append((block.double() - centres[true]).norm(dim=1))
        distance.scatter_(1, true[:, None], torch.inf)
        distance[:, ~present] = torch.inf
        foreign.append(distance.amin(1))
        intruder = torch.minimum(intruder, distance.amin(0))
    return torch.cat(own).numpy(), torch.cat(foreign).numpy(), intruder.numpy()
