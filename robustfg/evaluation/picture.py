"""The picture of the feature space: the embedding itself where it is flat, else its two most telling directions."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfg.core.files import write_atomically
from robustfg.data.splits import balanced_subset
from robustfg.evaluation.gather import gathered
from robustfg.evaluation.scatter import Scatter, scatter_of
from robustfg.evaluation.separation import Embeddings

POINTS = 2000
"""Most samples shown."""


def write_picture(embeddings: Embeddings, num_classes: int, path: Path | None) -> None:
    """Writes an archive with ``points`` ``(n, 2)``, their ``label`` and ``index`` ``(n,)`` and ``means`` ``(K, 2)``.

    Every process must ask. ``axes`` says what the axes are: ``embedding``, or ``discriminant``. Discriminant directions
    come from one half of every class's samples, and the other half is shown: along directions chosen on themselves,
    any classes look apart where dimensions abound. Of many samples a fixed, class-balanced part is shown.

    Args:
        embeddings: of the evaluated split.
        num_classes: K.
        path: the file; None on processes that do not write it.
    """
    embedding, label, index = embeddings.own()
    ids, labels = (np.concatenate(c) for c in zip(*gathered((index.numpy(), label.numpy())), strict=True))
    order = np.argsort(ids)
    ids, labels = ids[order], labels[order]
    flat = embedding.shape[1] <= 2
    axes = torch.eye(embedding.shape[1], 2, dtype=torch.float64)
    if not flat:
        half = balanced_subset(labels, len(labels) // 2)
        seen = _among(index, ids[half])
        axes = discriminant(scatter_of(embeddings.part(seen), num_classes))
        embeddings = embeddings.part(~seen)
        ids, labels = np.delete(ids, half), np.delete(labels, half)
    means = embeddings.means(num_classes)[1] @ axes
    embedding, label, index = embeddings.own()
    mine = _among(index, ids[balanced_subset(labels, POINTS)])
    share = ((embedding[mine].double() @ axes).float().numpy(), label[mine].numpy(), index[mine].numpy())
    points, labels, ids = (np.concatenate(column) for column in zip(*gathered(share), strict=True))
    if path is not None:
        order = np.argsort(ids)
        with write_atomically(path) as file:
            np.savez_compressed(
                file,
                points=points[order],
                label=labels[order],
                index=ids[order],
                means=means.float().numpy(),
                axes="embedding" if flat else "discriminant",
            )


def _among(index: Tensor, ids: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.isin(index.numpy(), ids))


def discriminant(scatter: Scatter) -> Tensor:
    """Fisher's two directions, ``(D, 2)``, along which the means lie furthest apart for how far classes scatter.

    The covariance within classes is shrunk towards its mean variance by D / (D + N - K), so that it has an inverse.
    Columns are scaled to a variance
    of 1 under it, and their largest entry is positive.
    """
    present = scatter.count > 0
    count, means = scatter.count[present], scatter.means[present]
    free, dimensions = float((count - 1).sum()), scatter.means.shape[1]
    shrinkage = dimensions / (dimensions + free)
    within = scatter.within / max(free, 1)
    variance = float(within.trace()) / dimensions or 1.0
    shrunk = (1 - shrinkage) * within + shrinkage * variance * torch.eye(dimensions, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(shrunk)
    whiten = vectors / values.sqrt()
    away = (means - (count[:, None] * means).sum(0) / count.sum()) * count.sqrt()[:, None]
    telling = torch.linalg.eigh(whiten.T @ (away.T @ away) @ whiten).eigenvectors[:, -2:].flip(1)
    axes: Tensor = whiten @ telling
    axes *= axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return axes
