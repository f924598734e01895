"""The diagnostics of the feature space together: Gaussian, symmetric, as claimed; and its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustfg.evaluation.claim import claimed_law
from robustfg.evaluation.gaussianity import gaussianity_of
from robustfg.evaluation.picture import write_picture
from robustfg.evaluation.scatter import WIDEST, scatter_of
from robustfg.evaluation.separation import Embeddings
from robustfg.evaluation.symmetry import symmetry_of


def embedding_of(
    embeddings: Embeddings, classes: Sequence[str], *, loss: object, device: torch.device, picture: Path | None
) -> dict[str, Any] | None:
    """The block ``embedding`` of ``summary.json``; every process must ask.

    Args:
        embeddings: of the evaluated split.
        classes: their names.
        loss: the model's loss module.
        device: where it lies.
        picture: where the picture's points go; None on processes that do not write it.

    Returns:
        ``gaussian`` (``gaussianity_of``), ``symmetry`` (``symmetry_of``) and ``claimed`` (``claimed_law``), each None
        where it cannot be told; None for all of it where the embedding has more than ``WIDEST`` dimensions.
    """
    if picture is not None:
        picture.unlink(missing_ok=True)  # an earlier evaluation's
    if embeddings.own()[0].shape[1] > WIDEST:
        return None
    scatter = scatter_of(embeddings, len(classes))
    write_picture(embeddings, len(classes), picture)
    return {
        "gaussian": gaussianity_of(embeddings, scatter, classes),
        "symmetry": symmetry_of(scatter),
        "claimed": claimed_law(embeddings, loss, device),
    }
