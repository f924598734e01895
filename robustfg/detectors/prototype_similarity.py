"""How unlike the prototypes of the predicted class an input looks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustfg.core.types import Output
from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.features import EMBEDDING
from robustfg.detectors.learned import Learned
from robustfg.detectors.moments import MomentFit, Moments


class PrototypeSimilarity(Detector):
    """The squared distance to the nearest prototype of the predicted class.

    On heads with prototypes (``maxsep``, ``protopnet``) it is the smallest value over all positions of their map
    ``class_distance``; their similarity log((d + 1) / (d + e)) orders inputs the other way round. On every other head
    the prototype of a class is the mean embedding of its training samples, or of all where it has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = Learned("means")

    def fit(self) -> Fit:
        return MomentFit([EMBEDDING], self._learn, products=False)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        predicted = output.logits.argmax(1)
        if "class_distance" in output.maps:
            samples = torch.arange(len(predicted), device=predicted.device)
            return output.maps["class_distance"][samples, predicted].amin((1, 2))
        means = self.prototypes.known("means")
        return (output.embedding.to(means) - means[predicted]).square().sum(1)

    def _learn(self, moments: list[Moments]) -> None:
        found = moments[0]
        self.prototypes.keep(means=torch.where(found.count[:, None] > 0, found.means(), found.mean()))
