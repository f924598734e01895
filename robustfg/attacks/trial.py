"""Images on which a copy of a model is compared with the model."""

from functools import lru_cache

import torch
from torch import Tensor

from robustfg.attacks.randomness import keyed_uniforms

COUNT = 4


def trial_images(like: Tensor) -> Tensor:
    """``(4, C, H, W)`` of the shape, type and device of ``like`` ``(B, C, H, W)``: noise and one colour, in turns.

    The same for every batch, or what is believed of a copy would depend on who else is attacked. Copies' errors were no
    smaller there than on data.
    """
    return _drawn(like.shape[1:], like.dtype, like.device)


@lru_cache(maxsize=4)  # drawing them takes as long as a pass of a small network
def _drawn(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        index = torch.arange(COUNT, device=device)
        noise = keyed_uniforms(shape.numel(), index, "probes").view(COUNT, *shape).to(dtype)
        flat = noise[..., :1, :1].expand_as(noise)
        return torch.where((index % 2 == 0)[:, None, None, None], noise, flat)
