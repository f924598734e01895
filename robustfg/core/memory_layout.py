"""Memory layout: which is chosen for which network and device, and the one combination that must never run.

oneDNN's AVX2 kernel for pointwise convolutions (``jit_1x1:avx2``, version 3.12 in torch 2.14.1) writes behind its
buffer where the weight gradient of one with a stride and 2 to 7 input channels is asked for in channels-last layout.
The process dies then or later. Evaluations and attacks ask for no such gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError

LEAST_CHANNELS = 16
"""Input channels from which a pointwise convolution may have a stride: twice what was measured, and one register of
AVX-512."""
IMAGE = 3
"""Channels of an image: a convolution that reads one says nothing about the network's width."""
NARROW = 4
"""On a CPU convolutions with an output no wider stay in the usual layout, and so do their images: in channels-last
layout oneDNN's AVX-512 kernels take three times as long there."""


def arrange(network: nn.Module, channels_last: object) -> None:
    """Brings a network's weights to a layout that is safe on every device it may be moved to.

    Args:
        network: changed in place.
        channels_last: ``model.channels_last``. ``"auto"``: yes, which is faster on CPUs and GPUs alike, unless a part
            behind the images had to be protected; such a network is too narrow to gain.

    Raises:
        UserError: unless ``channels_last`` is ``"auto"``, True or False.
    """
    if not isinstance(channels_last, bool) and channels_last != "auto":
        raise UserError(f"model.channels_last must be auto, true or false, got {channels_last!r}")
    protect(network)
    narrow = any(
        isinstance(part, nn.Conv2d) and thinned(part) and part.in_channels > IMAGE for part in network.modules()
    )
    last = not narrow if channels_last == "auto" else channels_last
    for weight in network.parameters():
        if weight.dim() == 4:  # ``network.to`` refuses those of five dimensions
            weight.data = weight.data.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def suits_channels_last(device: torch.device, width: int) -> bool:
    """Whether a convolution without weight gradients, its output ``width`` positions wide, is faster so."""
    return device.type != "cpu" or width > NARROW


def protect(network: nn.Module) -> None:
    """Exchanges the stride of pointwise convolutions that would die for a stride of their input; the answer is equal.

    That does not depend on device and layout: of images, of other weights, of a norm over channels, of a state that is
    assigned. Copies of the network are protected as well.
    The first convolutions of FastViT, MobileOne and RepVGG are among them.
    """
    for convolution in _endangered(network):
        convolution.register_forward_pre_hook(Thinned(convolution.stride[0], convolution.stride[1]))
        convolution.stride = 1, 1


def thinned(module: nn.Module) -> bool:
    """Whether this convolution is protected."""
    return any(isinstance(hook, Thinned) for hook in module._forward_pre_hooks.values())


@dataclass(frozen=True)
class Thinned:
    """A hook before a convolution: every so manieth row and column of its input ``(B, C, H, W)``."""

    rows: int
    columns: int

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features, *more = inputs
        return features[..., :: self.rows, :: self.columns], *more


def _endangered(network: nn.Module) -> Iterator[nn.Conv2d]:
    for module in network.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.in_channels < LEAST_CHANNELS
            and module.groups == 1
            and set(module.kernel_size) == {1}
            and max(module.stride) > 1
            and (module.padding == "valid" or set(module.padding) == {0})
        ):
            yield module
