"""Feature squeezing (Xu et al., NDSS 2018): a prediction that changes when little is taken from the image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.base import Detector
from robustfg.models.squeezers import BitDepth, MedianFilter

FLOOR = -1e4
"""Score of an image whose probabilities no squeezer changes, in place of minus infinity."""


class FeatureSqueezing(Detector):
    """The log odds log(d / (2 - d)) of the largest L1 distance d of the probabilities to those of a squeezed image.

    They order inputs as the distance does, which is the paper's score, but do not saturate where probabilities round to
    0 and 1, so that no gradient is lost but where no squeezer changes anything. Every squeezer costs a forward pass.

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
        return torch.stack([log_odds(output.logits, view.logits) for view in views]).amax(0)


def log_odds(one: Tensor, other: Tensor) -> Tensor:
    """Log(d / (2 - d)) with d = ||softmax(one) - softmax(other)||_1 for logits ``(B, K)``; ``(B,)``, from ``FLOOR`` on.

    What some classes gain others lose, so d is twice the larger of gains and losses over all classes but one: the most
    probable one, whose own change is rounded away where its probability is near 1. 2 - d is twice what both share.
    """
    p, q = one.log_softmax(1), other.log_softmax(1)
    top = torch.maximum(p, q).argmax(1, keepdim=True)
    change = (q - p).scatter(1, top, 0.0)
    changed = change != 0
    apart = change.abs().where(changed, torch.ones_like(change))
    size = torch.maximum(p, q) + (-torch.expm1(-apart)).log()  # log |exp(p) - exp(q)|
    floor = size.new_full((len(size), 1), FLOOR)
    gained, lost = (
        torch.cat([size.masked_fill(~(changed & side), -torch.inf), floor], 1).logsumexp(1)
        for side in (change > 0, change < 0)
    )
    return (torch.maximum(gained, lost) - torch.minimum(p, q).logsumexp(1)).clamp_min(FLOOR)
