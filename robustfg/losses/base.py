"""The interface of every loss module: a head and the criterion that trains it."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from robustfg.types import Output


class LossModule(nn.Module, ABC):
    """Turns a feature map into an ``Output`` and scores that output.

    It is a submodule of the classifier, so that the optimizer, the checkpoint and DDP see its parameters.

    Attributes:
        epoch: training progress in epochs (2.5 is the middle of the third), set during training; ramps read it.
    """

    epoch: float = float("inf")

    @abstractmethod
    def forward(self, feature_map: Tensor) -> Output:
        """Scores a feature map ``(B, C, h, w)``."""

    @abstractmethod
    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        """The training loss under ``"loss"`` and every term under its own name, all scalars.

        Args:
            output: what ``forward`` gave.
            label: ``(B,)`` true classes.
        """

    def anomaly(self, output: Output) -> Tensor:
        """How abnormal the input looks, ``(B,)``, higher is more abnormal. Default: minus the largest probability."""
        return -output.logits.softmax(1).amax(1)


class Embedding(nn.Module):
    """Mean over positions, then a linear layer where ``dim`` asks for one: ``(B, C, h, w)`` to ``(B, dim or C)``."""

    def __init__(self, channels: int, dim: int | None) -> None:
        super().__init__()
        self.dim = dim or channels
        self.project = nn.Linear(channels, dim) if dim else nn.Identity()

    def forward(self, feature_map: Tensor) -> Tensor:
        embedding: Tensor = self.project(feature_map.mean(dim=(2, 3)))
        return embedding
