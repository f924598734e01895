"""A classifier under watch, as the evaluation asks it."""

from typing import cast

import torch
from torch import Tensor

from robustfg.core.types import Output
from robustfg.detectors import Watched
from robustfg.evaluation.measure import Classify


class WatchedClassifier(Watched):
    """``Watched``, which also tells where its evidence lies and its own score of abnormality."""

    @torch.no_grad()
    def explain(self, image: Tensor) -> tuple[Output, dict[str, Tensor]]:
        """The answers with scores, and maps ``(B, h, w)`` by name."""
        _, maps = cast(Classify, self.classifier).explain(image)
        return self(image), maps

    def anomaly(self, output: Output) -> Tensor:
        """The loss module's own score, ``(B,)``."""
        return cast(Classify, self.classifier).anomaly(output)
