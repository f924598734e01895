"""Objectives against a classifier and a detector together: wrong *and* accepted. The max-forms are also decisions."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustfg.attacks.objectives.acceptance import Reading, Threshold, squared_distances
from robustfg.attacks.objectives.acceptance import ScoreOf as ScoreOf
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.objectives.targeted import TargetedMargin, TargetedObjective
from robustfg.core.types import Output


@dataclass(frozen=True, kw_only=True)
class WrongAndNear(Threshold):
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

    margin: float = 0.05
    distances: Reading = squared_distances
    name = "wrong_and_near"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        distance = self.distances(output)
        own = distance.gather(1, label[:, None])
        worst = torch.maximum(self.excess(distance), (distance - own) / self.unit)
        return -(worst.scatter(1, label[:, None], torch.inf).amin(1) + self.margin)


@dataclass(frozen=True, kw_only=True)
class WrongAndAccepted(Threshold):
    """The smaller of a classifier's objective and the detector's slack (tau - score) / c: positive where both hold.

    The max-form for a detector that is separate from the classifier.

    Args:
        score: how abnormal an input looks, ``(B,)``, read from an output; accepted where it is at most ``tau``.
        tau: threshold on the score.
        scale: c; None: tau, which must then be positive.
        classifier: positive where the class is wrong.
    """

    score: Reading
    classifier: Objective = field(default_factory=Margin)

    @property
    def name(self) -> str:
        return f"{self.classifier.name} and accepted"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        excess = self.excess(self.score(output))
        return torch.minimum(self.classifier(output, label), -excess)


@dataclass(frozen=True, kw_only=True)
class Selective(Threshold):
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
    classifier: Objective = field(default_factory=Margin)
    confidence: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.classifier.name} then detector"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        fooled = self.classifier(output, label)
        excess = self.excess(self.score(output)).clamp_min(0)
        return torch.where(fooled > self.confidence, self.confidence - excess, fooled)


@dataclass(frozen=True, kw_only=True)
class FooledFirst(Threshold):
    """Ranks every image that fools the classifier above all others, and those by how little the detector minds.

    M / (1 + |M|) up to 0 where it is not fooled, 1 / (1 + [score - tau]_+ / c) where it is. For searches that compare
    values and should end at the least score among wrong answers, whatever the threshold, such as Square.

    Args:
        score: as of ``WrongAndAccepted``.
        tau: threshold below which nothing more is gained.
        scale: c; None: tau, which must then be positive.
        classifier: positive where the class is wrong, M.
    """

    score: Reading
    classifier: Objective = field(default_factory=Margin)

    @property
    def name(self) -> str:
        return f"{self.classifier.name} before detector"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        fooled = self.classifier(output, label)
        excess = self.excess(self.score(output)).clamp_min(0)
        return torch.where(fooled > 0, 1 / (1 + excess), fooled / (1 + fooled.abs()))


@dataclass(frozen=True, kw_only=True)
class TargetedAndAccepted(Threshold, TargetedObjective):
    """The smaller of the target's lead over the true class and the detector's slack (tau - score) / c.

    Args:
        score: as of ``WrongAndAccepted``.
        tau: threshold on the score.
        scale: c; None: tau, which must then be positive.
    """

    score: Reading
    name = "targeted and accepted"

    def __call__(self, output: Output | Tensor, label: Tensor, target: Tensor) -> Tensor:
        excess = self.excess(self.score(output))
        return torch.minimum(TargetedMargin()(output, label, target), -excess)


@dataclass(frozen=True, kw_only=True)
class TargetedAndNear(Threshold, TargetedObjective):
    """``WrongAndNear`` for one wrong class t: min((tau - D_t) / c, (D_y - D_t) / c).

    Args:
        tau: threshold on the distance.
        scale: c; None: tau, which must then be positive.
        distances: reads D ``(B, K)`` from an output.
    """

    distances: Reading = squared_distances
    name = "targeted and near"

    def __call__(self, output: Output | Tensor, label: Tensor, target: Tensor) -> Tensor:
        distance = self.distances(output)
        own, other = (distance.gather(1, column[:, None]).squeeze(1) for column in (label, target))
        return torch.minimum(-self.excess(other), (own - other) / self.unit)


@dataclass(frozen=True, kw_only=True)
class Accepted(Threshold):
    """The detector's slack (tau - score) / c, whatever the class: positive exactly where the input is accepted.

    Objective and decision of attacks that push images of unknown classes to be accepted; labels are ignored.

    Args:
        score: as of ``WrongAndAccepted``.
        tau: threshold on the score.
        scale: c; None: tau, which must then be positive.
    """

    score: Reading
    name = "accepted"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return -self.excess(self.score(output))
