"""Detectors that read the logits and learn nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.base import Detector


class Likelihood(Detector):
    """The GM head's own word: min_k D_k = -2 max_k logits, where logits are -D_k / 2.

    D_k is the squared Mahalanobis distance to class k with the log-determinant and prior terms that the head has, so
    the score is -2 log of the largest p(k) N(x; mu_k, Sigma_k) up to a constant (Wan et al., TPAMI 2023). On a head
    that is no mixture it is ``MaxLogit`` times two.
    """

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        return -2 * output.logits.amax(1)


class MaxLogit(Detector):
    """Minus the largest logit (Hendrycks et al., ICML 2022, "Scaling out-of-distribution detection").

    Example:
        >>> import torch
        >>> from robustfg.detectors import MaxLogit
        >>> from robustfg import Output
        >>> logits = torch.tensor([[3.0, 1.0], [0.5, 0.25]])
        >>> MaxLogit().score(Output(logits=logits, embedding=logits))
        tensor([-3.0000, -0.5000])
    """

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        return -output.logits.amax(1)


class MaxSoftmax(Detector):
    """The log odds against the predicted class, log((1 - p) / p) with p the largest probability.

    Orders inputs as minus p does (Hendrycks & Gimpel, ICLR 2017), but does not saturate where p rounds to 1, so that
    no gradient is lost.

    Args:
        temperature: the logits are divided by it; 1 in the paper, 1000 in ODIN (Liang et al., ICLR 2018).
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _positive(temperature)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        logits = output.logits / self.temperature
        largest, predicted = logits.max(1)
        others = logits.scatter(1, predicted[:, None], -torch.inf)
        return others.logsumexp(1) - largest


class Energy(Detector):
    """The free energy -T log sum_k exp(logit_k / T) (Liu et al., NeurIPS 2020).

    Args:
        temperature: T; 1 in the paper.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _positive(temperature)

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        return -self.temperature * (output.logits / self.temperature).logsumexp(1)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise UserError(f"detector.temperature must be > 0, got {temperature}")
    return temperature
