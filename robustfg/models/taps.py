"""Taps: what inner layers of a network say while it answers."""

import difflib
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code would not see hooks that come and go
def with_layers(backbone: nn.Module, image: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """A backbone's answer to images, and the features of inner layers.

    Nothing is left on the network afterwards; the names are looked up in the network that runs, so that a structural
    copy with other parts speaks of its own.

    Args:
        backbone: images ``(B, 3, H, W)`` to feature maps; where it has a ``network``, names are those of its parts.
        image: the images.
        names: parts of the network, as in ``named_modules``. Of a part that runs several times the last answer counts.

    Returns:
        The feature map and, by name, ``(B, C)`` means over positions; class and register tokens are left out.

    Raises:
        UserError: for a part that the network does not have, does not run, or that gives no features of images.
    """
    network = getattr(backbone, "network", backbone)
    parts = dict(network.named_modules(remove_duplicate=False))
    found: dict[str, Tensor] = {}

    def listener(name: str) -> Callable[[nn.Module, object, object], None]:
        def listen(part: nn.Module, inputs: object, answer: object) -> None:
            found[name] = _pooled(answer, network, name, len(image))

        return listen

    with ExitStack() as stack:
        for name in names:
            if not name or name not in parts:
                raise UserError(_unknown(name, list(parts)))
            stack.callback(parts[name].register_forward_hook(listener(name)).remove)
        feature_map: Tensor = backbone(image)
    if silent := [name for name in names if name not in found]:
        raise UserError(f"detector.features: the network does not run {', '.join(silent)} to make its feature map")
    return feature_map, {name: found[name] for name in names}


def _pooled(answer: object, network: nn.Module, name: str, images: int) -> Tensor:
    """Means over positions ``(B, C)`` of maps in either layout, or of tokens."""
    if not isinstance(answer, Tensor) or len(answer) != images or answer.dim() not in (2, 3, 4):
        told = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"detector.features: layer {name} gives no features of {images} images but {told}")
    if answer.dim() == 4:
        return answer.mean((1, 2) if _channels_last(answer, network) else (2, 3))
    if answer.dim() == 3:
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        patches = answer.shape[1] - prefix
        square = patches > 0 and round(patches**0.5) ** 2 == patches  # before the tokens are added there are none
        return answer[:, prefix if square else 0 :].mean(1)
    return answer


def _channels_last(answer: Tensor, network: nn.Module) -> bool:
    """Maps of square images are square; the network's own layout decides where the shape does not tell."""
    first, second, third = answer.shape[1:]
    if (first == second) != (second == third):
        return first == second
    return getattr(network, "output_fmt", "NCHW") == "NHWC"


def _unknown(name: str, known: Sequence[str]) -> str:
    outer = [part for part in known if part and "." not in part]
    close = [part for part in difflib.get_close_matches(name, known, n=5) if part not in outer]
    more = f"; close inner ones: {', '.join(close)}" if close else ""
    return f"detector.features: the network has no layer {name!r}; it has {', '.join(outer)} and their parts{more}"
