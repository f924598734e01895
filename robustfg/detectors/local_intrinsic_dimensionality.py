"""Local intrinsic dimensionality (Ma et al., ICLR 2018), without any adversarial sample."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.bank import Bank, BankFit, checked_count
from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.features import EMBEDDING, checked_features, feature_of, layers_among
from robustfg.detectors.nearest import Points

SMALLEST = 1e-6
"""Least distance, as a share of the k-th, and least mean log ratio: the dimension is at most 1e6."""


class LocalIntrinsicDimensionality(Detector):
    """-1 / mean_j log(r_j / r_k) over the distances r_1 … r_k to the nearest reference samples; summed over features.

    Ma et al. take neighbours in the batch of 100 and weigh the layers by a logistic regression on adversarial samples.
    Here the reference is a fixed part of the training set, so that a score does not depend on the batch, and nothing is
    learned from an attack.

    Args:
        features: ``embedding`` and names of inner layers.
        neighbours: k; 20 in the paper.
        per_class: size of the reference set by class.
        seed: which samples.
    """

    def __init__(
        self, *, features: Sequence[str] = (EMBEDDING,), neighbours: int = 20, per_class: int = 100, seed: int = 0
    ) -> None:
        super().__init__()
        if neighbours < 2:
            raise UserError(f"detector.neighbours must be >= 2, got {neighbours}")
        self.features, self.neighbours = checked_features(features), neighbours
        self.layers = layers_among(self.features)
        self.per_class, self.seed = checked_count("per_class", per_class), seed
        self.references = nn.ModuleList(Points() for _ in self.features)

    def fit(self) -> Fit:
        return BankFit(self.features, self._learn, per_class=self.per_class, seed=self.seed)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        terms = []
        for name, reference in zip(self.features, self.references, strict=True):
            assert isinstance(reference, Points)
            terms.append(dimension(feature_of(output, name), reference, self.neighbours))
        return torch.stack(terms).sum(0)

    def _learn(self, bank: Bank, classes: int) -> None:
        for reference, rows in zip(self.references, bank.features, strict=True):
            assert isinstance(reference, Points)
            reference.learn(rows)


def dimension(feature: Tensor, reference: Points, neighbours: int) -> Tensor:
    """The maximum-likelihood estimate ``(B,)`` at features ``(B, D)``."""
    rows = reference.known("rows")
    feature = feature.to(rows)
    chosen = reference.nearest(feature, neighbours)
    distance: Tensor = torch.linalg.vector_norm(feature[:, None] - rows[chosen], dim=2)
    last = distance.amax(1, keepdim=True)
    ratio = (distance / last.clamp_min(torch.finfo(last.dtype).tiny)).clamp(SMALLEST, 1)
    return (-ratio.log().mean(1)).clamp_min(SMALLEST).reciprocal()
