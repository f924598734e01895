"""A classifier and the detectors that watch it, as one network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.base import Detector


class Watched(nn.Module):
    """Answers like the classifier, with the score of every detector in ``Output.scores``.

    Args:
        classifier: images ``(B, C, H, W)`` to ``Output``; where detectors read inner layers, it takes their names as a
            second argument and gives ``Output.layers``, as ``robustfg.classifier.Classifier`` does.
        detectors: by name.
    """

    def __init__(self, classifier: nn.Module, detectors: Mapping[str, Detector]) -> None:
        super().__init__()
        if dotted := [name for name in detectors if "." in name]:
            raise UserError(f"detector: names must hold no dot, got {', '.join(dotted)}")
        self.classifier = classifier
        self.detectors = nn.ModuleDict(detectors)

    def forward(self, image: Tensor) -> Output:
        """The classifier's answers with the detectors' scores."""
        output = self.answer(image)
        with torch.autocast(image.device.type, enabled=False):  # distances do not survive half precision
            whole = output.map(_whole)
        scores = {}
        for name, module in self.detectors.items():
            detector = cast(Detector, module)
            views = [self.answer(view(image), detector.layers).map(_whole) for view in detector.views]
            with torch.autocast(image.device.type, enabled=False):
                scores[name] = detector.score(whole, views)
        return replace(output, scores=scores)

    def answer(self, image: Tensor, layers: Sequence[str] | None = None) -> Output:
        """The classifier's answers alone, with some inner layers; None: those that the detectors read."""
        wanted = self.layers if layers is None else tuple(layers)
        output: Output = self.classifier(image, wanted) if wanted else self.classifier(image)
        return output

    @property
    def layers(self) -> tuple[str, ...]:
        """Inner layers that the detectors read, each once."""
        named: Iterable[str] = (name for d in self.detectors.values() for name in cast(Detector, d).layers)
        return tuple(dict.fromkeys(named))


def _whole(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
