"""Small images: lower a network's first strides until its feature map is large enough."""

import torch
from torch import nn

STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def keep_map_large(network: nn.Module, image_size: int, smallest_map: int) -> None:
    """Halves strides, first layers first, until ``network`` maps a square image to ``smallest_map`` positions a side.

    All layers that shrink the same resolution change together, so a residual branch and its shortcut stay alike. On a
    ResNet and 32-px images this gives the usual CIFAR variant: no stride in the stem, no max-pool. A network that
    cannot run with lower strides is left as far as it got.
    """
    while (layers := _first_strided(network, image_size)) is not None:
        side, strided = layers
        if side >= smallest_map or not strided:
            return
        before = [layer.stride for layer in strided]
        for layer in strided:
            layer.stride = tuple(max(1, s // 2) for s in _pair(layer.stride))
        if _first_strided(network, image_size) is None:
            for layer, stride in zip(strided, before, strict=True):
                layer.stride = stride
            return


def _first_strided(network: nn.Module, image_size: int) -> tuple[int, list[nn.Module]] | None:
    """Side of the final map, and the layers that shrink the largest resolution; None if the network fails."""
    seen: list[tuple[int, nn.Module]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if max(_pair(layer.stride)) > 1:
            seen.append((inputs[0].shape[-1], layer))

    training = network.training
    hooks = [layer.register_forward_pre_hook(note) for layer in network.modules() if isinstance(layer, STRIDED)]
    try:
        with torch.no_grad():
            side = network.eval().forward_features(torch.zeros(1, 3, image_size, image_size)).shape[-1]
    except RuntimeError:
        return None
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    largest = max((resolution for resolution, _ in seen), default=0)
    return side, [layer for resolution, layer in seen if resolution == largest]


def _pair(stride: int | tuple[int, ...]) -> tuple[int, ...]:
    return stride if isinstance(stride, tuple) else (stride, stride)
