"""What passes between the parts: a batch of samples and a classifier's output."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

pixels_checked: ContextVar[bool] = ContextVar("pixels_checked", default=False)
"""True inside an attack, which has checked its images: the model's own check would wait for the device every time."""


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
    """Spatial evidence by name, each ``(B, M, h, w)``; an attention map is ``(B, 1, h, w)`` and non-negative."""
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    """Features of inner layers by name, averaged over positions, each ``(B, C)``; only those that were asked for."""
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    """How abnormal the input looks by detector, each ``(B,)``; only where detectors watch."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Output":
        """The same with every tensor changed."""
        return Output(
            logits=change(self.logits),
            embedding=change(self.embedding),
            heads={name: change(value) for name, value in self.heads.items()},
            maps={name: change(value) for name, value in self.maps.items()},
            layers={name: change(value) for name, value in self.layers.items()},
            scores={name: change(value) for name, value in self.scores.items()},
        )

    def chunk(self, count: int) -> "list[Output]":
        """Cuts the batch into ``count`` equal parts."""
        return [self.map(lambda value, part=part: value.chunk(count)[part]) for part in range(count)]  # type: ignore[misc]


def mapped(answer: "Output | Tensor", change: Callable[[Tensor], Tensor]) -> "Output | Tensor":
    """An output, or plain logits, with every tensor changed."""
    return answer.map(change) if isinstance(answer, Output) else change(answer)


def joined(answers: "Sequence[Output | Tensor]") -> "Output | Tensor":
    """The outputs of several batches as one."""
    outputs = [answer for answer in answers if isinstance(answer, Output)]
    if not outputs:
        return torch.cat([logits_of(answer) for answer in answers])
    first = outputs[0]
    return Output(
        logits=torch.cat([output.logits for output in outputs]),
        embedding=torch.cat([output.embedding for output in outputs]),
        heads={name: torch.cat([output.heads[name] for output in outputs]) for name in first.heads},
        maps={name: torch.cat([output.maps[name] for output in outputs]) for name in first.maps},
        layers={name: torch.cat([output.layers[name] for output in outputs]) for name in first.layers},
        scores={name: torch.cat([output.scores[name] for output in outputs]) for name in first.scores},
    )


def logits_of(output: "Output | Tensor") -> Tensor:
    """The deciding logits ``(B, K)`` of a classifier's output, or of a plain function's logits."""
    return output.logits if isinstance(output, Output) else output


def decision_margin(logits: Tensor, label: Tensor) -> Tensor:
    """True logit minus the largest other one, ``(B,)``: negative where the prediction is wrong.

    Negative infinity where a logit is NaN: that is no right answer.
    """
    true = logits.gather(1, label[:, None]).squeeze(1)
    others = logits.scatter(1, label[:, None], float("-inf")).amax(1)
    return (true - others).nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
