"""Which features a detector reads: the embedding and inner layers of the network."""

from collections.abc import Sequence

from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output

EMBEDDING = "embedding"
"""Stands for ``Output.embedding`` among the names of layers."""


def checked_features(features: Sequence[str]) -> tuple[str, ...]:
    """The names, if there is one and none is twice. Raises ``UserError`` otherwise."""
    if isinstance(features, str) or not features or len(set(features)) < len(features):
        raise UserError(f"detector.features must be different names, {EMBEDDING} or layers, got {features}")
    return tuple(features)


def layers_among(features: Sequence[str]) -> tuple[str, ...]:
    """The inner layers among the features."""
    return tuple(name for name in features if name != EMBEDDING)


def feature_of(output: Output, name: str) -> Tensor:
    """A feature ``(B, D)`` by its name. Raises ``UserError`` if the classifier was not asked for that layer."""
    if name == EMBEDDING:
        return output.embedding
    if name not in output.layers:
        raise UserError(f"detector.features: the classifier does not give layer {name!r}; it gives {[*output.layers]}")
    return output.layers[name]
