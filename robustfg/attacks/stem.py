"""The first convolution of a network, with a cheaper gradient to the image.

A convolution of stride s that reads an image is a convolution of stride 1 on the image's s x s blocks (Shi et al.
2016), so its gradient to the image is a plain convolution whose channels are the pixels of a block. CPU libraries
spend twice the time on the usual order, in which only three channels come out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_CHANNELS = 4
LEAST_KERNEL = 4
"""Below it the usual order is as fast."""


class Stem(nn.Module):
    """Answers as ``convolution`` does, and is differentiable with respect to the image only.

    Args:
        convolution: one that ``Stem.suits``.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        stride, padding = convolution.stride[0], int(convolution.padding[0])
        self.stride, self.padding = stride, padding
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        # Zeros in front bring the first pixel to the edge of a block, zeros behind fill the last one.
        self.front = -padding % stride
        missing = -(weight.shape[-1] + self.front) % stride
        blocks = F.pixel_unshuffle(F.pad(weight, (self.front, missing) * 2), stride)
        backwards = blocks.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
        self.register_buffer("backwards", backwards, persistent=False)

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Whether this is a plain convolution of an image with a square kernel and stride, worth the other order."""
        return (
            type(module) is nn.Conv2d
            and module.in_channels <= MOST_CHANNELS
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and set(module.dilation) == {1}
            and 1 < module.stride[0] == module.stride[1]
            and module.padding[0] == module.padding[1]
            and LEAST_KERNEL <= module.kernel_size[0] == module.kernel_size[1]
        )

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = _BlockConvolution.apply(image, self)
        return answer


class _BlockConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, stem: Any) -> Tensor:
        ctx.stem, ctx.size = stem, image.shape[-2:]
        return F.conv2d(image, stem.weight, stem.bias, stem.stride, stem.padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        stem, (height, width) = ctx.stem, ctx.size
        blocks = F.conv2d(gradient.to(stem.backwards.dtype), stem.backwards, padding=stem.backwards.shape[-1] - 1)
        first = stem.front + stem.padding
        pixels = F.pixel_shuffle(blocks, stem.stride)[..., first : first + height, first : first + width]
        unseen = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
        return F.pad(pixels, unseen), None
