"""Distances to class means and the cross-entropy on them, with backward passes that keep little."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    """Mean cross-entropy after the true class's exponent is multiplied by 1 + margin; keeps only the probabilities."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, margin: float, offset: Tensor | None) -> Tensor:
        stretched = (1 + margin) * logits.gather(1, label[:, None])
        if offset is not None:
            stretched = stretched - margin * offset[:, None]
        scaled = logits.scatter(1, label[:, None], stretched)
        log_sum = scaled.logsumexp(1, keepdim=True)
        ctx.save_for_backward(scaled.sub_(log_sum).exp_(), label)
        ctx.margin = margin
        return (log_sum - stretched).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        probability, label = ctx.saved_tensors
        scale = gradient / len(label)
        true = probability.gather(1, label[:, None]) - 1
        to_logits = probability.scatter(1, label[:, None], true * (1 + ctx.margin)).mul_(scale)
        return to_logits, None, None, (-ctx.margin * scale * true).squeeze(1) if ctx.needs_input_grad[3] else None


def gaussian_logits(embedding: Tensor, means: Tensor) -> Tensor:
    """-1/2 ||x - mu_k||^2 for every sample and class, ``(B, K)``.

    Over the classes these logits are those of a linear layer with weight ``mu_k`` and bias ``-1/2 ||mu_k||^2``, shifted
    by ``-1/2 ||x||^2``, a constant of the sample. Seen from the centre of the means, where squares hold little that
    cancels.

    Args:
        embedding: ``(B, D)``.
        means: ``(K, D)``.
    """
    # Never in half precision: squared distances overflow it.
    with torch.autocast(embedding.device.type, enabled=False):
        return centred_logits(*centred(embedding.to(means.dtype), means))


def centred(embedding: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Both as seen from the centre of the means, which no distance depends on."""
    centre = means.detach().mean(0)
    return embedding - centre, means - centre


def centred_logits(embedding: Tensor, means: Tensor) -> Tensor:
    """``gaussian_logits`` of what is ``centred``."""
    logits: Tensor = _GaussianLogits.apply(embedding, means)
    return logits


def margin_cross_entropy(logits: Tensor, label: Tensor, margin: float, offset: Tensor | None = None) -> Tensor:
    """The GM classification loss: mean cross-entropy with the true class's half distance multiplied by 1 + margin.

    Args:
        logits: ``(B, K)``, minus half squared distances, plus what else there is.
        label: ``(B,)``.
        margin: alpha.
        offset: ``(B,)`` what the true logit holds beside minus the half distance, on which there is no margin.
    """
    loss: Tensor = _MarginCrossEntropy.apply(logits, label, margin, offset)
    return loss
