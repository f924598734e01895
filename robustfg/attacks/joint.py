"""Objectives against a classifier and a detector together: wrong *and* accepted. The max-forms are also decisions."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.objectives import Margin, Objective
from robustfg.errors import UserError
from robustfg.types import Output, logits_of

Reading = Callable[[Output | Tensor], Tensor]


def squared_distances(output: Output | Tensor) -> Tensor:
    """D_k of a head whose logits are -D_k / 2, ``(B, K)``."""
    return -2 * logits_of(output)


def _scale(tau: float, scale: float | None) -> float:
    chosen = scale if scale is not None else tau
    if not chosen > 0:
        raise UserError(f"scale must be > 0, such as the clean scores' deviation, where tau is not; got {chosen}")
    return chosen


def _excess(score: Tensor, tau: float, scale: float) -> Tensor:
    """How far a score is above the threshold in units of the scale: negative exactly where ``score <= tau``."""
    return (score - tau) / scale - torch.finfo(score.dtype).eps * (score <= tau)


@dataclass(frozen=True, kw_only=True)
class WrongAndNear:
    """A wrong class whose distance is below the threshold and below the true one's, in one exact condition.

    For heads that classify and detect by the same distances: the class is argmin_k D_k, and an input is accepted where
    min_k D_k <= tau. It is wrong and accepted exactly where h <= 0 for margin 0,
    h = min_{k != y} max((D_k - tau) / c + margin, (D_k - D_y) / c + margin). The objective is -h; no weight is needed.

    Args:
        tau: threshold on the distance.
        margin: how far inside to aim, in units of c: 0.05 for a search, 0 for a decision, which is then positive
            exactly where the attacker has won.
        scale: c; None: tau, which must then be positive.
        distances: reads D ``(B, K)`` from an output.
    """

    tau: float
    margin: float = 0.05
    scale: float | None = None
    distances: Reading = squared_distances
    name = "wrong_and_near"

    def __post_init__(self) -> None:
        _scale(self.tau, self.scale)

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        distance = self.distances(output)
        own, scale = distance.gather(1, label[:, None]), _scale(self.tau, self.scale)
        worst = torch.maximum(_excess(distance, self.tau, scale), (distance - own) / scale)
        return -(worst.scatter(1, label[:, None], torch.inf).amin(1) + self.margin)


@dataclass(frozen=True, kw_only=True)
class WrongAndAccepted:
    """The smaller of a classifier's objective and the detector's slack (tau - score) / c: positive where both hold.

    The max-form for a detector that is separate from the classifier.

    Args:
        score: how abnormal an input looks, ``(B,)``, read from an output; accepted where it is at most ``tau``.
        tau: threshold on the score.
        scale: c; None: tau, which must then be positive.
        classifier: positive where the class is wrong.
    """

    score: Reading
    tau: float
    scale: float | None = None
    classifier: Objective = field(default_factory=Margin)

    def __post_init__(self) -> None:
        _scale(self.tau, self.scale)

    @property
    def name(self) -> str:
        return f"{self.classifier.name} and accepted"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        excess = _excess(self.score(output), self.tau, _scale(self.tau, self.scale))
        return torch.minimum(self.classifier(output, label), -excess)


@dataclass(frozen=True, kw_only=True)
class Selective:
    """Fools the classifier first, and lowers the detector's score where it is fooled (Bryniarski et al. 2022).

    The value is M up to ``confidence``, and beyond it ``confidence`` - max(score - tau, 0) / c. Needs no weight;
    attacks that compare values between steps are better served by the max-form.

    Args:
        score: as of ``WrongAndAccepted``.
        tau: threshold on the score.
        scale: c; None: tau, which must then be positive.
        classifier: positive where the class is wrong, M.
        confidence: M from which the classifier counts as fooled.
    """

    score: Reading
    tau: float
    scale: float | None = None
    classifier: Objective = field(default_factory=Margin)
    confidence: float = 0.0

    def __post_init__(self) -> None:
        _scale(self.tau, self.scale)

    @property
    def name(self) -> str:
        return f"{self.classifier.name} then detector"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        fooled = self.classifier(output, label)
        excess = _excess(self.score(output), self.tau, _scale(self.tau, self.scale)).clamp_min(0)
        return torch.where(fooled > self.confidence, self.confidence - excess, fooled)


@dataclass(frozen=True, kw_only=True)
class Lagrangian:
    """min(M, confidence) - weight * [score - tau + margin c]_+ / c: both goals at once, weighed (C&W style).

    Args:
        score: as of ``WrongAndAccepted``.
        tau: threshold on the score.
        weight: lambda; try several between 0.01 and 100, none is best everywhere.
        scale: c; None: tau, which must then be positive.
        classifier: positive where the class is wrong, M.
        confidence: M beyond which nothing more is gained; about a fifth of the clean margin.
        margin: how far below the threshold to aim, as a share of c.
    """

    score: Reading
    tau: float
    weight: float
    scale: float | None = None
    classifier: Objective = field(default_factory=Margin)
    confidence: float = torch.inf
    margin: float = 0.05

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight must be > 0, got {self.weight}")
        _scale(self.tau, self.scale)

    @property
    def name(self) -> str:
        return f"{self.classifier.name} - {self.weight:g} detector"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        scale = _scale(self.tau, self.scale)
        excess = ((self.score(output) - self.tau) / scale + self.margin).clamp_min(0)
        return self.classifier(output, label).clamp_max(self.confidence) - self.weight * excess
