"""Small images: lower a network's first strides until its feature map is large enough."""

from typing import Any

import torch
from torch import nn

STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def keep_map_large(network: Any, image_size: int, smallest_map: int) -> None:
    """Halves strides, first layers first, until ``network`` maps a square image to ``smallest_map`` positions a side.

    All layers that shrink the same resolution change together, so a residual branch and its shortcut stay alike. On a
    ResNet and 32-px images this gives the usual CIFAR variant: no stride in the stem, no max-pool. Pools whose windows
    tile go on tiling. A network that cannot run with lower strides is left as far as it got.
    """
    side, strided = _first_strided(network, image_size)
    while side < smallest_map and strided:
        before = [(layer.stride, layer.kernel_size) for layer in strided]
        for layer in strided:
            _lower(layer)
        new_side, remaining = _first_strided(network, image_size)
        if new_side < side:
            for layer, (stride, kernel) in zip(strided, before, strict=True):
                layer.stride, layer.kernel_size = stride, kernel
            return
        side, strided = new_side, remaining


def _lower(layer: Any) -> None:
    lowered = tuple(max(1, s // 2) for s in _pair(layer.stride))
    if not isinstance(layer, nn.Conv2d) and _pair(layer.kernel_size) == _pair(layer.stride):
        layer.kernel_size = lowered
    layer.stride = lowered


def _first_strided(network: Any, image_size: int) -> tuple[int, list[Any]]:
    """Side of the final map, 0 if the network fails, and the layers that shrink the largest resolution."""
    seen: list[tuple[int, Any]] = []

    def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if max(_pair(layer.stride)) > 1:
            seen.append((inputs[0].shape[-1], layer))

    training = network.training
    hooks = [layer.register_forward_pre_hook(note) for layer in network.modules() if isinstance(layer, STRIDED)]
    try:
        with torch.no_grad():
            side = network.eval().forward_features(torch.zeros(1, 3, image_size, image_size)).shape[2]
    except Exception:  # networks fail in any way, and are measured again afterwards
        side = 0  # too small an image, for one
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    largest = max((resolution for resolution, _ in seen), default=0)
    return side, [layer for resolution, layer in seen if resolution == largest]


def _pair(stride: int | tuple[int, ...]) -> tuple[int, ...]:
    return stride if isinstance(stride, tuple) else (stride, stride)
