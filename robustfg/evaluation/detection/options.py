"""What an evaluation with detectors is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustfg.attacks.runtime.eval_mode import Model
from robustfg.core.errors import UserError
from robustfg.data.unknown import Unknown
from robustfg.detectors import Detector


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Options ``evaluation.detection`` and the detectors they are about.

    Args:
        detectors: by name, not yet fitted.
        nodes: the config node of every detector, which is written beside what it learned.
        fpr: share of clean images that may be rejected at the headline threshold.
        grid: further such shares, for the curve.
        white_box: attack classifier and detector together, knowing both; without it nothing can be claimed.
        black_box: attack them together, knowing only their answers, and by transfer where a surrogate is given.
        forced_rejection: attack for the rejection of right images, a denial of service.
        steps: of every joint attack that takes gradients.
        restarts: of the same.
        queries: of black-box attacks.
        surrogate: another classifier, for transfer; None for no transfer.
        surrogate_name: tells it apart in the record.
        half_epsilon: folders of runs on the same data whose attacks have half the radius: what is known of classifiers
            without a detector there bounds what can be believed here (Tramèr 2022).
        seed: of the joint attacks and of the bootstrap.
        unknown: sets of images of unknown classes, by name, to be told from the test samples; under the white box also
            when they are attacked so that they be accepted.
    """

    detectors: Mapping[str, Detector]
    nodes: Mapping[str, Mapping[str, Any]]
    fpr: float = 0.05
    grid: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    white_box: bool = True
    black_box: bool = True
    forced_rejection: bool = False
    steps: int = 100
    restarts: int = 1
    queries: int = 1000
    surrogate: Model | None = None
    surrogate_name: str = ""
    half_epsilon: Sequence[str] = field(default_factory=tuple)
    seed: int = 0
    unknown: Mapping[str, Unknown] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.detectors:
            raise UserError("detector is empty; choose one such as detector=likelihood, or leave it out")
        for option, value in [("fpr", self.fpr), *(("grid", level) for level in self.grid)]:
            if not 0 < value < 1:
                raise UserError(f"evaluation.detection.{option} must be in (0, 1), got {value}")
        for option in ("steps", "restarts", "queries"):
            if getattr(self, option) < 1:
                raise UserError(f"evaluation.detection.{option} must be >= 1, got {getattr(self, option)}")

    @property
    def levels(self) -> list[float]:
        """All false-positive rates that are told, ascending."""
        return sorted({*self.grid, self.fpr})
