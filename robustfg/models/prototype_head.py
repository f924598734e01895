"""The prototype head: a latent map, prototypes that look at it, and a linear layer that weighs what they see."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.models.prototypes import Prototypes


@dataclass(frozen=True)
class Seen:
    """What the head makes of a batch."""

    logits: Tensor
    """``(B, K)``."""
    latent: Tensor
    """``(B, D, h, w)`` in (0, 1)."""
    evidence: Tensor
    """``(B, P)``."""
    class_distance: Tensor
    """``(B, K, h, w)``, squared distance to the nearest prototype of every class."""


class PrototypeHead(nn.Module):
    """The head of ProtoPNet (Chen et al., NeurIPS 2019), with or without attention.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        per_class: prototypes of every class.
        depth: channels D of the latent map.
        epsilon: of the similarity log((d + 1) / (d + epsilon)).
        clamped: keep the prototypes in [0, 1].
    """

    def __init__(
        self, *, channels: int, num_classes: int, per_class: int, depth: int, epsilon: float, clamped: bool
    ) -> None:
        super().__init__()
        for option, value in {"prototypes_per_class": per_class, "prototype_depth": depth}.items():
            if value < 1:
                raise UserError(f"loss.{option} must be >= 1, got {value}")
        if not 0 < epsilon < 1:
            raise UserError(f"loss.similarity_epsilon must be in (0, 1), got {epsilon}")
        self.epsilon = epsilon
        first, second = nn.Conv2d(channels, depth, 1), nn.Conv2d(depth, depth, 1)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.add_on = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
        self.prototypes = Prototypes(num_classes=num_classes, per_class=per_class, depth=depth, clamped=clamped)
        self.last_layer = nn.Linear(len(self.prototypes), num_classes, bias=False)
        self.last_layer.weight.data = torch.where(self.own(), 1.0, -0.5)
        self.register_load_state_dict_pre_hook(_resize_before_loading)  # type: ignore[no-untyped-call]

    def forward(self, feature_map: Tensor, attention: Tensor | None = None) -> Seen:
        """Looks at a feature map ``(B, C, h, w)``, where told with attention ``(B, 1, h, w)``."""
        latent = self.add_on(feature_map)
        evidence, class_distance = self.prototypes(latent, attention, self.epsilon)
        return Seen(self.last_layer(evidence), latent, evidence, class_distance)

    def own(self) -> Tensor:
        """Which prototypes are a class's own, ``(K, P)``."""
        classes = self.prototypes.classes
        return torch.arange(self.prototypes.num_classes, device=classes.device)[:, None] == classes

    def l1(self) -> Tensor:
        """Sum of the absolute weights that connect prototypes with classes not their own."""
        return self.last_layer.weight.masked_fill(self.own(), 0).abs().sum()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the names that phases know."""
        parts = {"add_on": self.add_on, "prototypes": self.prototypes, "last_layer": self.last_layer}
        return {name: list(part.parameters()) for name, part in parts.items()}

    def keep(self, kept: Tensor) -> None:
        """Forgets all prototypes but some, ``(P,)`` bool, and their weights."""
        self.prototypes.keep(kept)
        self._replace_weight(self.last_layer.weight.data[:, kept])

    def resize_to(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Takes on a state dict's number of prototypes, if every class has one there."""
        classes, known = state.get(f"{prefix}prototypes.classes"), torch.arange(self.prototypes.num_classes)
        if classes is not None and torch.equal(torch.unique(classes).cpu(), known):
            self.prototypes.resize(classes.clone())
            self._replace_weight(self.last_layer.weight.data.new_zeros(len(known), len(classes)))

    def _replace_weight(self, weight: Tensor) -> None:
        self.last_layer.weight.data, self.last_layer.weight.grad = weight.contiguous(), None
        self.last_layer.in_features = weight.shape[1]


def separation(class_distance: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Distances ``(B, 1, h, w)`` to the nearest prototype of the true class, and of any other."""
    place = label[:, None, None, None].expand(-1, 1, *class_distance.shape[2:])
    return class_distance.gather(1, place), class_distance.scatter(1, place, torch.inf).amin(1, keepdim=True)


def _resize_before_loading(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    assert isinstance(module, PrototypeHead)
    module.resize_to(state, prefix)
