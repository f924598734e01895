"""The distribution of features that a model claims, against the one it has."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from robustfg.evaluation.gather import gathered
from robustfg.evaluation.gaussianity import against_law
from robustfg.evaluation.ks_chance import of_independent
from robustfg.evaluation.separation import BLOCK, Embeddings


@runtime_checkable
class ClaimsGaussians(Protocol):
    """A loss module that says which Gaussian every class is."""

    def squared_distances(self, embedding: Tensor) -> Tensor:
        """(x - mu_k)^T Sigma_k^-1 (x - mu_k), ``(B, K)``, without log-determinant and prior.

        Args:
            embedding: ``(B, D)``.
        """


@torch.no_grad()
def claimed_law(embeddings: Embeddings, loss: object, device: torch.device) -> dict[str, Any] | None:
    """Squared distances of clean samples to their own class's claimed Gaussian against chi-square with D degrees.

    Every process must ask. What is returned is what ``against_law`` tells, and ``dimensions``, D; None where the model
    claims nothing. A ``mean_ratio`` under 1 says that features lie nearer to their means than claimed.

    Args:
        embeddings: of the evaluated split.
        loss: the model's loss module.
        device: where it lies.
    """
    if not isinstance(loss, ClaimsGaussians):
        return None
    embedding, label, index = embeddings.own()
    own = [
        loss.squared_distances(block.to(device)).cpu().double().gather(1, true[:, None])[:, 0]
        for block, true in zip(torch.split(embedding, BLOCK), torch.split(label, BLOCK), strict=True)
    ]
    parts = gathered((index.numpy(), torch.cat(own).numpy()))
    ids, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    d, chance = embedding.shape[1], of_independent(len(distance))
    return {"dimensions": d} | against_law(distance[np.argsort(ids)], d, chance=chance)
