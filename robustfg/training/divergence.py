"""How far the prediction on an attacked image is from that on the clean one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.core.types import Output


def log_probabilities(output: Output) -> Tensor:
    """Logarithms of the softmax of the deciding logits, ``(B, K)``, never in half precision."""
    dtype = torch.promote_types(output.logits.dtype, torch.float32)
    return F.log_softmax(output.logits.to(dtype), dim=1)


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(p || p') of every sample, ``(B,)``, from log-probabilities ``(B, K)`` on clean and attacked images."""
    return F.kl_div(attacked, clean, reduction="none", log_target=True).sum(1)
