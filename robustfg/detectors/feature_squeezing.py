"""Feature squeezing (Xu et al., NDSS 2018): a prediction that changes when little is taken from the image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfg.detectors.base import Detector
from robustfg.errors import UserError
from robustfg.models.squeezers import BitDepth, MedianFilter
from robustfg.types import Output


class FeatureSqueezing(Detector):
    """The largest L1 distance of the probabilities to those of a squeezed image, from 0 to 2.

    Costs a forward pass for every squeezer.

    Args:
        bits: colour depth of the first; 5 in the paper for CIFAR-10 and ImageNet. None: without.
        window: side of the second's median filter; 2 in the paper. None: without. The paper's third, non-local means,
            is left out.
    """

    def __init__(self, *, bits: int | None = 5, window: int | None = 2) -> None:
        super().__init__()
        squeezers: list[nn.Module] = [] if bits is None else [BitDepth(bits=bits)]
        squeezers += [] if window is None else [MedianFilter(size=window)]
        if not squeezers:
            raise UserError("detector.bits and detector.window are both null: there is nothing to squeeze")
        self.squeezers = nn.ModuleList(squeezers)

    @property
    def views(self) -> Sequence[nn.Module]:
        return list(self.squeezers)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        own = output.logits.softmax(1)
        return torch.stack([(own - view.logits.softmax(1)).abs().sum(1) for view in views]).amax(0)
