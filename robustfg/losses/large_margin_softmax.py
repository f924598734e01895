"""Large-margin softmax: the true class's angle is multiplied by a whole number before the cross-entropy."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.softmax import Softmax


def psi(cosine: Tensor, multiple: int) -> Tensor:
    """(-1)^j cos(m theta) - 2 j for theta in [j pi / m, (j + 1) pi / m], which falls from 1 to 1 - 2 m over [0, pi].

    cos(m theta) is the Chebyshev polynomial T_m of the cosine, so that the gradient is finite at every angle.

    Args:
        cosine: cos(theta), any shape.
        multiple: m, at least 1.
    """
    before, multiplied = torch.ones_like(cosine), cosine
    for _ in range(multiple - 1):
        before, multiplied = multiplied, 2 * cosine * multiplied - before
    piece = torch.zeros_like(cosine)
    for j in range(1, multiple):
        piece = piece + (cosine < math.cos(j * math.pi / multiple))
    return (1 - 2 * (piece % 2)) * multiplied - 2 * piece


class LargeMarginSoftmax(Softmax):
    """L-Softmax (Liu et al., ICML 2016) on a linear layer without bias.

    In the loss the true logit |w||x| cos(theta) becomes |w||x| (lambda cos(theta) + psi(theta)) / (1 + lambda), where
    lambda = max(lambda_min, lambda_start (1 + annealing * epoch)^-lambda_power) falls during training: with the full
    margin from the start networks may not begin to learn. The output's logits have no margin.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer in between; None for none.
        multiple: m; 2 for CIFAR-10 and 4 for MNIST in the authors' release.
        lambda_start: 1000 there; 0 for the full margin from the start.
        lambda_power: 45 for CIFAR-10 and 35 for MNIST there.
        annealing: per epoch; there 2e-5 per step on CIFAR-10, which is 0.0078 for 391 steps an epoch.
        lambda_min: 0 there, 5 or 10 for difficult data.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        multiple: int = 2,
        lambda_start: float = 1000.0,
        lambda_power: float = 45.0,
        annealing: float = 0.0078,
        lambda_min: float = 0.0,
    ) -> None:
        super().__init__(channels=channels, num_classes=num_classes, embedding_dim=embedding_dim)
        if multiple < 1:
            raise UserError(f"loss.multiple must be a whole number >= 1, got {multiple}")
        for option, value in {"lambda_start": lambda_start, "lambda_min": lambda_min}.items():
            if not value >= 0:
                raise UserError(f"loss.{option} must be >= 0, got {value}")
        for option, value in {"lambda_power": lambda_power, "annealing": annealing}.items():
            if not value > 0:
                raise UserError(f"loss.{option} must be > 0, got {value}; loss.lambda_start=0 does without annealing")
        self.multiple, self.lambda_start, self.lambda_power = multiple, lambda_start, lambda_power
        self.annealing, self.lambda_min = annealing, lambda_min
        self.classifier = nn.Linear(self.embedding.dim, num_classes, bias=False)

    def ease(self, epoch: float) -> float:
        """Lambda after ``epoch`` epochs."""
        fallen: float = (1 + self.annealing * epoch) ** -self.lambda_power
        return max(self.lambda_min, self.lambda_start * fallen)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        weight, own, ease = self.classifier.weight, label[:, None], self.ease(self.epoch)
        logits = output.logits.to(weight.dtype)
        length = output.embedding.to(weight.dtype).norm(dim=1) * weight.norm(dim=1)[label]
        length = length.clamp_min(torch.finfo(length.dtype).tiny)[:, None]
        true = logits.gather(1, own)
        cosine = (true / length).clamp(-1, 1)
        narrowed = (ease * true + length * psi(cosine, self.multiple)) / (1 + ease)
        return {"loss": F.cross_entropy(logits.scatter(1, own, narrowed), label)}
