"""The loss module's own anomaly score in the place of a detector."""

from collections.abc import Sequence

from torch import Tensor

from robustfg.core.types import Output
from robustfg.detectors import Detector
from robustfg.losses import LossModule


class OwnScore(Detector):
    """Scores by ``LossModule.anomaly``; knows nothing of its own.

    Args:
        loss: of the classifier that is watched.
    """

    def __init__(self, loss: LossModule) -> None:
        super().__init__()
        self.anomaly = loss.anomaly  # the method alone, so that the module is not registered twice

    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        return self.anomaly(output)
