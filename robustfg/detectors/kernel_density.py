"""Kernel density under the predicted class (Feinman et al. 2017, "Detecting adversarial samples from artifacts")."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.bank import Bank, BankFit, checked_count
from robustfg.detectors.base import Detector, Fit
from robustfg.detectors.features import EMBEDDING, checked_features, feature_of, layers_among
from robustfg.detectors.learned import Learned
from robustfg.detectors.nearest import squared_distances


class KernelDensity(Detector):
    """Minus the log of the mean Gaussian kernel over the training samples of the predicted class.

    A class without training samples is judged by all of them. The score lacks the constant D/2 log(2 pi).

    Args:
        feature: ``embedding`` or the name of an inner layer.
        bandwidth: the kernel's standard deviation; the paper has 1.2 for MNIST and 0.26 for CIFAR-10. None: Scott's
            rule for every class, s n^(-1/(D+4)) with n its samples and s^2 the mean variance around the class means.
        per_class: training samples kept of every class; None: all.
        seed: which are kept.
    """

    def __init__(
        self, *, feature: str = EMBEDDING, bandwidth: float | None = None, per_class: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if bandwidth is not None and not bandwidth > 0:
            raise UserError(f"detector.bandwidth must be > 0, or null for Scott's rule, got {bandwidth}")
        self.feature, self.bandwidth = feature, bandwidth
        self.layers = layers_among(checked_features([feature]))
        self.per_class, self.seed = checked_count("per_class", per_class), seed
        self.kernels = Kernels()

    def fit(self) -> Fit:
        return BankFit([self.feature], self._learn, per_class=self.per_class, seed=self.seed)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        return -self.kernels.log_density(feature_of(output, self.feature), output.logits.argmax(1))

    def _learn(self, bank: Bank, classes: int) -> None:
        self.kernels.learn(bank.features[0], bank.label, classes, self.bandwidth)


class Kernels(Learned):
    """Gaussian kernels around samples, by class.

    Attributes:
        mean: of all samples, ``(D,)``.
        rows: the samples ``(N, D)``, without the mean, class by class.
        count: samples of every class ``(K,)``.
        width: standard deviation of every class's kernel ``(K,)``.
    """

    mean: Tensor
    rows: Tensor
    count: Tensor
    width: Tensor

    def __init__(self) -> None:
        super().__init__("mean", "rows", "count", "width")

    def learn(self, rows: Tensor, label: Tensor, classes: int, bandwidth: float | None) -> None:
        """From samples ``(N, D)`` of classes ``(N,)``, in order of the classes."""
        mean, dim = rows.double().mean(0), rows.shape[1]
        centred, count = rows.double() - mean, torch.bincount(label, minlength=classes).double()
        if bandwidth is None:
            means = torch.zeros(classes, dim, dtype=torch.float64).index_add_(0, label, centred)
            means /= count.clamp_min(1)[:, None]
            spread = (centred - means[label]).square().mean().sqrt()
            spread = spread if spread > 0 else torch.ones(())  # every class is a point
            width = spread * torch.where(count > 0, count, count.sum()) ** (-1 / (dim + 4))
        else:
            width = torch.full((classes,), bandwidth)
        self.keep(mean=mean, rows=centred, count=count, width=width)

    def log_density(self, feature: Tensor, predicted: Tensor) -> Tensor:
        """Of features ``(B, D)`` under classes ``(B,)``, but for -D/2 log(2 pi)."""
        rows = self.known("rows")
        order = predicted.argsort()
        asked = predicted.bincount(minlength=len(self.count)).to(self.count)
        held, shares = (counts.long().tolist() for counts in torch.stack([self.count, asked]))
        sorted_by_class = (feature.to(rows) - self.mean)[order]
        by_class = zip(torch.split(rows, held), torch.split(sorted_by_class, shares), self.width, strict=True)
        found = [_log_mean(part, own if len(own) else rows, width) for own, part, width in by_class if len(part)]
        return torch.cat(found)[order.argsort()] if found else feature.to(rows).sum(1)


def _log_mean(feature: Tensor, rows: Tensor, width: Tensor) -> Tensor:
    """Log of the mean kernel around rows ``(n, D)`` at features ``(b, D)``, but for -D/2 log(2 pi)."""
    terms = squared_distances(feature, rows) / (-2 * width.square())
    return terms.logsumexp(1) - math.log(len(rows)) - rows.shape[1] * width.log()
