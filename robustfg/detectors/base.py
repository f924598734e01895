"""The interface of every detector."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from robustfg.core.errors import OptionsByName
from robustfg.core.types import Output


class Fit(ABC):
    """One look at the training set, un-augmented and in eval mode, from which a detector learns what is normal.

    Every process sees its share and tells the others; all come to the same end.
    """

    @abstractmethod
    def see(self, output: Output, label: Tensor, index: Tensor) -> None:
        """Takes note of a batch.

        Args:
            output: the classifier's answers, without gradients, with the ``layers`` that the detector reads.
            label: ``(B,)`` true classes.
            index: ``(B,)`` the samples' ids.
        """

    @abstractmethod
    def findings(self) -> Any:
        """What this process found, on the CPU; must be picklable."""

    @abstractmethod
    def conclude(self, findings: Sequence[Any]) -> None:
        """Sets the detector's buffers from the findings of all processes; does not depend on their number or order."""


class Detector(OptionsByName, nn.Module, ABC):
    """Tells how abnormal an input looks from what a classifier makes of it.

    Scores can be differentiated, and all that was learned is in buffers, so that a detector can be attacked, copied and
    moved like the network itself.

    Attributes:
        layers: inner layers of the backbone that it reads from ``Output.layers``, by their names in the network.
    """

    layers: Sequence[str] = ()

    @property
    def views(self) -> Sequence[nn.Module]:
        """Further versions of the image that the classifier must answer, such as squeezed ones.

        Each maps images ``(B, C, H, W)`` to images of the same shape.
        """
        return ()

    @abstractmethod
    def score(self, output: Output, views: Sequence[Output] = ()) -> Tensor:
        """How abnormal inputs look, ``(B,)``, higher is more abnormal.

        Args:
            output: the classifier's answers.
            views: its answers to every one of ``views``, in order.
        """

    def fit(self) -> Fit | None:
        """A look at the training set, begun; None where there is nothing to learn."""
        return None
