"""A survey after which a mixture is the one that the training set's features have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.losses.base import Survey
from robustfg.losses.covariance import Covariance
from robustfg.losses.priors import Priors


@dataclass(frozen=True)
class Sums:
    """What must be summed over samples, in float64 on the CPU."""

    count: Tensor
    """``(K,)`` samples."""
    first: Tensor
    """``(K, D)`` sums of features."""
    second: Tensor
    """``(1 or K, *)`` sums of what ``Covariance.outer`` gives."""

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.first + other.first, self.second + other.second)


class ClassMeans(Survey):
    """Means become the class means, priors the class frequencies, and covariances, where wanted, those within classes.

    A covariance is estimated as (n S + m s I) / (n + m), S that of its n samples, s the average variance within
    classes, m the number of samples below which S is singular. A class without a sample keeps its mean.

    Args:
        embed: feature map to ``(B, D)``.
        means: ``(K, D)``, changed in place.
        covariance: likewise.
        priors: likewise.
        covariances_too: set the covariances. Where features are narrow, gradients grow by the inverse of their
            variances, and the learning rate must be small from then on.
    """

    def __init__(
        self,
        *,
        embed: Callable[[Tensor], Tensor],
        means: Tensor,
        covariance: Covariance,
        priors: Priors,
        covariances_too: bool,
    ) -> None:
        self.embed, self.means, self.covariance, self.priors = embed, means, covariance, priors
        self.covariances_too = covariances_too
        classes, dim = means.shape
        one = covariance.outer(torch.zeros(1, dim, dtype=torch.float64))
        self.sums = Sums(
            torch.zeros(classes, dtype=torch.float64),
            torch.zeros(classes, dim, dtype=torch.float64),
            torch.zeros(covariance.count, *one.shape, dtype=torch.float64),
        )

    @torch.no_grad()
    def see(self, feature_map: Tensor, label: Tensor, index: Tensor) -> None:
        rows, label = self.embed(feature_map).double().cpu(), label.cpu()
        self.sums.count.add_(torch.bincount(label, minlength=len(self.means)))
        self.sums.first.index_add_(0, label, rows)
        if self.covariance.tied:
            self.sums.second[0] += self.covariance.outer(rows)
        else:
            for k in sorted(set(label.tolist())):
                self.sums.second[k] += self.covariance.outer(rows[label == k])

    def findings(self) -> Sums:
        return self.sums

    @torch.no_grad()
    def conclude(self, findings: Sequence[Sums]) -> Mapping[str, float]:
        """Sets the mixture. Logs how far the means moved, in mean squared distance, and the variance within classes."""
        sums = findings[0]
        for more in findings[1:]:
            sums = sums + more
        seen = sums.count > 0
        mean = sums.first / sums.count.clamp_min(1)[:, None]
        moved = (mean - self.means.cpu())[seen].square().sum(1).mean()
        self.means[seen.to(self.means.device)] = mean[seen].to(self.means)
        spread, average = self._within(sums, mean)
        if self.covariances_too:
            self.covariance.become(spread)
        self.priors.become(sums.count)
        return {"moved": float(moved), "variance": average}

    def _within(self, sums: Sums, mean: Tensor) -> tuple[Tensor, float]:
        """The estimates of the covariances, and the average variance within classes."""
        around = torch.stack([self.covariance.outer(row[None]) for row in mean * sums.count.sqrt()[:, None]])
        count = sums.count
        if self.covariance.tied:
            around, count = around.sum(0, keepdim=True), count.sum(0, keepdim=True)
        scatter = sums.second - around
        trace = scatter.diagonal(dim1=1, dim2=2) if scatter.dim() == 3 else scatter
        average = trace.sum() / (sums.count.sum() * self.means.shape[1])
        whole = torch.eye(self.means.shape[1], dtype=torch.float64) if scatter.dim() == 3 else scatter.new_ones(1)
        weight = self.covariance.needed
        shape = (-1, *[1] * (scatter.dim() - 1))
        return (scatter + weight * average * whole) / (count + weight).view(shape), float(average)
