"""What passes between the parts: a batch of samples and a classifier's output."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What a data set yields, collated."""

    image: Tensor
    """``(B, 3, H, W)`` float32 in [0, 1]; normalisation happens inside the model, so epsilon is in pixels."""
    label: Tensor
    """``(B,)`` int64."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """``(B,)`` int64, the sample's stable id: it keys random numbers and the record of evidence."""


@dataclass(frozen=True)
class Output:
    """What a classifier yields."""

    logits: Tensor
    """``(B, K)``, the scores that decide the class."""
    embedding: Tensor
    """``(B, D)``, the feature that the loss module works on."""
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """Other logits by name, each ``(B, K)``."""
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    """Spatial evidence by name, each ``(B, 1, h, w)``."""

    def chunk(self, count: int) -> "list[Output]":
        """Cuts the batch into ``count`` equal parts."""
        return [
            Output(
                logits=self.logits.chunk(count)[part],
                embedding=self.embedding.chunk(count)[part],
                heads={name: value.chunk(count)[part] for name, value in self.heads.items()},
                maps={name: value.chunk(count)[part] for name, value in self.maps.items()},
            )
            for part in range(count)
        ]


def logits_of(output: "Output | Tensor") -> Tensor:
    """The deciding logits ``(B, K)`` of a classifier's output, or of a plain function's logits."""
    return output.logits if isinstance(output, Output) else output


def decision_margin(logits: Tensor, label: Tensor) -> Tensor:
    """True logit minus the largest other one, ``(B,)``: negative where the prediction is wrong."""
    true = logits.gather(1, label[:, None]).squeeze(1)
    others = logits.scatter(1, label[:, None], float("-inf")).max(1).values
    return true - others
