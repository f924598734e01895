"""Distance to the k-th nearest training sample (Sun et al., ICML 2022)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.core.types import Output
from robustfg.detectors.bank import Bank, BankFit, checked_count
from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.features import EMBEDDING, checked_features, feature_of, layers_among
from robustfg.detectors.nearest import Points


class NearestNeighbours(Detector):
    """The Euclidean distance to the k-th nearest training sample of any class.

    Args:
        feature: ``embedding`` or the name of an inner layer.
        neighbours: k; 50 in the paper for CIFAR-10, 1000 for all of ImageNet. The last sample where there are fewer.
        normalise: compare features of unit length, as in the paper.
        per_class: training samples kept of every class; None: all.
        seed: which are kept.
    """

    def __init__(
        self,
        *,
        feature: str = EMBEDDING,
        neighbours: int = 50,
        normalise: bool = True,
        per_class: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.feature, self.normalise = feature, normalise
        self.layers = layers_among(checked_features([feature]))
        self.neighbours = checked_count("neighbours", neighbours) or 1
        self.per_class, self.seed = checked_count("per_class", per_class), seed
        self.samples = Points()

    def fit(self) -> Fit:
        return BankFit([self.feature], self._learn, per_class=self.per_class, seed=self.seed)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        rows = self.samples.known("rows")
        feature = self._compared(feature_of(output, self.feature).to(rows))
        last = self.samples.nearest(feature, self.neighbours)[:, -1]
        distance: Tensor = torch.linalg.vector_norm(feature - rows[last], dim=1)
        return distance

    def _compared(self, feature: Tensor) -> Tensor:
        return F.normalize(feature) if self.normalise else feature

    def _learn(self, bank: Bank, classes: int) -> None:
        rows = bank.features[0]
        self.samples.learn(F.normalize(rows, out=rows) if self.normalise else rows)
