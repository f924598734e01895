"""A classifier and the detectors that watch it, as one network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from robustfg.detectors.base import Detector
from robustfg.types import Output


class Watched(nn.Module):
    """Answers like the classifier, with the score of every detector in ``Output.scores``.

    Args:
        classifier: images ``(B, C, H, W)`` to ``Output``.
        detectors: by name.
    """

    def __init__(self, classifier: nn.Module, detectors: Mapping[str, Detector]) -> None:
        super().__init__()
        self.classifier = classifier
        self.detectors = nn.ModuleDict(detectors)

    def forward(self, image: Tensor) -> Output:
        """The classifier's answers with the detectors' scores."""
        output: Output = self.classifier(image)
        scores = {}
        for name, module in self.detectors.items():
            detector = cast(Detector, module)
            scores[name] = detector.score(output, [self.classifier(view(image)) for view in detector.views])
        return replace(output, scores=scores)
