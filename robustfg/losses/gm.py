"""The Gaussian-mixture loss with identity covariance.

Wan et al., "Rethinking Feature Distribution for Loss Functions in Image Classification" (CVPR 2018) and "Shaping Deep
Feature Space towards Gaussian Mixture for Visual Classification" (TPAMI 2023).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustfg.errors import UserError
from robustfg.losses.base import Embedding, LossModule
from robustfg.losses.explain import class_activation
from robustfg.losses.ramp import Ramp
from robustfg.types import Output


class _GaussianLogits(torch.autograd.Function):
    """-1/2 ||x - mu_k||^2 by one matrix product; backward without temporaries of the size of the means."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, means: Tensor) -> Tensor:
        ctx.save_for_backward(embedding, means)
        half_x, half_mu = (0.5 * torch.linalg.vector_norm(rows, dim=1).square() for rows in (embedding, means))
        return torch.addmm(-half_mu, embedding, means.t()).sub_(half_x[:, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        embedding, means = ctx.saved_tensors
        to_embedding = to_means = None
        if ctx.needs_input_grad[0]:
            to_embedding = (gradient @ means).addcmul_(embedding, gradient.sum(1, keepdim=True), value=-1)
        if ctx.needs_input_grad[1]:
            to_means = (gradient.t() @ embedding).addcmul_(means, gradient.sum(0)[:, None], value=-1)
        return to_embedding, to_means


class _MarginCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy after the true class's logit is multiplied by 1 + margin; keeps only the probabilities."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, margin: float) -> Tensor:
        scaled = logits.scatter(1, label[:, None], (1 + margin) * logits.gather(1, label[:, None]))
        true = scaled.gather(1, label[:, None])
        log_sum = scaled.logsumexp(1, keepdim=True)
        ctx.save_for_backward(scaled.sub_(log_sum).exp_(), label)
        ctx.margin = margin
        return (log_sum - true).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        probability, label = ctx.saved_tensors
        scale = gradient / len(label)
        true = (probability.gather(1, label[:, None]) - 1) * (1 + ctx.margin)
        return probability.scatter(1, label[:, None], true).mul_(scale), None, None


def gaussian_logits(embedding: Tensor, means: Tensor) -> Tensor:
    """-1/2 ||x - mu_k||^2 for every sample and class, ``(B, K)``.

    Over the classes these logits are those of a linear layer with weight ``mu_k`` and bias ``-1/2 ||mu_k||^2``, shifted
    by ``-1/2 ||x||^2``, a constant of the sample.

    Args:
        embedding: ``(B, D)``.
        means: ``(K, D)``.
    """
    # Never in half precision: squared distances overflow it.
    with torch.autocast(embedding.device.type, enabled=False):
        logits: Tensor = _GaussianLogits.apply(embedding.to(means.dtype), means)
    return logits


def margin_cross_entropy(logits: Tensor, label: Tensor, margin: float) -> Tensor:
    """The GM classification loss: mean cross-entropy with the true class's half distance multiplied by 1 + margin.

    Args:
        logits: ``(B, K)``, minus half squared distances.
        label: ``(B,)``.
        margin: alpha.
    """
    loss: Tensor = _MarginCrossEntropy.apply(logits, label, margin)
    return loss


class GaussianMixture(LossModule):
    """Classes are Gaussians of unit covariance around learned means; a sample belongs to the likeliest.

    The classification loss multiplies the true class's half squared distance d_y by (1 + margin) before the softmax;
    the likelihood loss is d_y itself: L = L_cls + likelihood * mean(d_y).

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        embedding_dim: size D of a linear layer before the mixture; None to use the pooled feature.
        margin: alpha, the margin on the true class's distance.
        margin_start: share of ``margin`` at epoch 0.
        likelihood: lambda, the weight of the likelihood loss.
        likelihood_start: share of ``likelihood`` at epoch 0.
        ramp_epochs: epochs over which both grow linearly to their full value.
        likelihood_factor: what the squared distance is multiplied by in the likelihood loss. The paper's density has
            1/2; the authors' PyTorch releases use 1, which doubles lambda.
        likelihood_over_all_classes: average the squared distance to the means of all classes instead of the true one,
            as the authors' MNIST and MCAT releases do. Its gradient pulls to the mean of all means: no likelihood.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        margin: float = 0.3,
        margin_start: float = 1.0,
        likelihood: float = 0.1,
        likelihood_start: float = 1.0,
        ramp_epochs: float = 0.0,
        likelihood_factor: float = 0.5,
        likelihood_over_all_classes: bool = False,
    ) -> None:
        super().__init__()
        for option, value in {"margin": margin, "likelihood": likelihood, "ramp_epochs": ramp_epochs}.items():
            if value < 0:
                raise UserError(f"loss.{option} must be >= 0, got {value}")
        self.margin = Ramp(value=margin, start=margin_start, epochs=ramp_epochs)
        self.likelihood = Ramp(value=likelihood, start=likelihood_start, epochs=ramp_epochs)
        self.likelihood_factor = likelihood_factor
        self.likelihood_over_all_classes = likelihood_over_all_classes
        self.embedding = Embedding(channels, embedding_dim)
        # As released: an expected squared length of 2/3 whatever D, so squared distances between means start near 4/3.
        self.means = nn.Parameter(torch.randn(num_classes, self.embedding.dim) * math.sqrt(2 / 3 / self.embedding.dim))

    def forward(self, feature_map: Tensor) -> Output:
        embedding = self.embedding(feature_map)
        return Output(logits=gaussian_logits(embedding, self.means), embedding=embedding)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        true_logit = output.logits.gather(1, label[:, None])
        classification = margin_cross_entropy(output.logits, label, self.margin.at(self.epoch))
        distances = output.logits if self.likelihood_over_all_classes else true_logit
        likelihood = -2 * self.likelihood_factor * distances.mean()
        total = classification + self.likelihood.at(self.epoch) * likelihood
        return {"loss": total, "classification": classification, "likelihood": likelihood}

    def anomaly(self, output: Output) -> Tensor:
        """Squared Mahalanobis distance under the predicted class, min_k ||x - mu_k||^2, without cancellation."""
        return (output.embedding - self.means[output.logits.argmax(1)]).square().sum(1)

    def evidence(self, feature_map: Tensor, output: Output) -> dict[str, Tensor]:
        """The class-activation map of the linear layer that ``gaussian_logits`` is up to a constant of the sample."""
        weight = self.embedding.pulled_back(self.means)
        return {"cam": class_activation(feature_map, weight, output.logits.argmax(1))}
