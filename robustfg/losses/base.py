"""The interface of every loss module: a head and the criterion that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from robustfg.core.errors import OptionsByName, UserError
from robustfg.core.types import Output
from robustfg.losses.explain import nearness


class Survey(ABC):
    """One look at the whole training set, un-augmented and in eval mode, between two phases of training.

    Every process sees its share and tells the others; all come to the same end. A push of prototypes is one.
    """

    @abstractmethod
    def see(self, feature_map: Tensor, label: Tensor, index: Tensor) -> None:
        """Takes note of a batch.

        Args:
            feature_map: ``(B, C, h, w)``, without gradients.
            label: ``(B,)``.
            index: ``(B,)`` the samples' ids.
        """

    @abstractmethod
    def findings(self) -> Any:
        """What this process found, on the CPU; must be picklable."""

    @abstractmethod
    def conclude(self, findings: Sequence[Any]) -> Mapping[str, float]:
        """Changes the loss module as the findings of all processes say; must not depend on their number or order.

        Returns:
            What is worth logging, by name.
        """


class LossModule(OptionsByName, nn.Module, ABC):
    """Turns a feature map into an ``Output`` and scores that output.

    It is a submodule of the classifier, so that the optimizer, the checkpoint and DDP see its parameters.

    Attributes:
        epoch: training progress in epochs (2.5 is the middle of the third), set during training; ramps read it.
        coefficients: weight of every term that phases may change, by the term's name.
    """

    epoch: float = float("inf")
    coefficients: dict[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = {}

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

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the name under which phases give learning rates and weight decays; together all of them."""
        return {"head": list(self.parameters())}

    def survey(self, name: str) -> Survey:
        """The survey of this name, such as ``"push"``, begun. Raises ``UserError`` for one it does not know."""
        raise UserError(f"phases: loss {type(self).__name__} has no survey named {name!r}")

    def anomaly(self, output: Output) -> Tensor:
        """How abnormal the input looks, ``(B,)``, higher is more abnormal. Default: minus the largest probability."""
        return -output.logits.softmax(1).amax(1)

    def evidence(self, feature_map: Tensor, output: Output) -> dict[str, Tensor]:
        """Where the evidence for the decision lies, by name: maps ``(B, h, w)``, larger is more, 0 is none.

        Default: the output's maps of one channel, and ``prototype`` where it has a ``class_distance``: how near every
        position lies to the closest prototype of the predicted class.

        Args:
            feature_map: what ``forward`` was given.
            output: what it gave.
        """
        found = {name: maps[:, 0] for name, maps in output.maps.items() if maps.shape[1] == 1}
        if "class_distance" in output.maps:
            found["prototype"] = nearness(output.maps["class_distance"], output.logits.argmax(1))
        return found


class Embedding(nn.Module):
    """Mean over positions, then a linear layer where ``dim`` asks for one: ``(B, C, h, w)`` to ``(B, dim or C)``."""

    def __init__(self, channels: int, dim: int | None) -> None:
        super().__init__()
        if dim is not None and dim < 1:
            raise UserError(f"loss.embedding_dim must be >= 1 or null, got {dim}")
        self.dim = channels if dim is None else dim
        self.project = nn.Identity() if dim is None else nn.Linear(channels, dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        embedding: Tensor = self.project(feature_map.mean(dim=(2, 3)))
        return embedding

    def pulled_back(self, weight: Tensor) -> Tensor:
        """Weights ``(K, dim or C)`` of a layer on the embedding as weights ``(K, C)`` on the pooled feature."""
        return weight @ self.project.weight if isinstance(self.project, nn.Linear) else weight
