"""ArcFace: cross-entropy on cosines, with a margin added to the true angle."""

import math

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.losses.cosine import Cosine


class ArcFace(Cosine):
    """ArcFace (Deng et al., CVPR 2019): s cos(theta_y + m) in the place of the true logit.

    Where theta_y + m is beyond pi, the cosine would rise again; cos(theta_y) - m sin(m), which keeps falling, takes its
    place, as in common code.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer before the cosines; None for none.
        scale: s; 64 in the face code of the GM authors.
        margin: m in radians, from 0 to pi/2; 0.5 there.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        scale: float = 64.0,
        margin: float = 0.5,
    ) -> None:
        super().__init__(channels=channels, num_classes=num_classes, embedding_dim=embedding_dim, scale=scale)
        if not 0 <= margin <= math.pi / 2:
            raise UserError(f"loss.margin must be in [0, pi/2], got {margin}")
        self.margin = margin

    def narrowed(self, cosine: Tensor) -> Tensor:
        # By the addition theorem, without arccos. The sine's slope is infinite at angle 0, where it counts as constant.
        sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        within = cosine >= -math.cos(self.margin)
        return torch.where(within, turned, cosine - self.margin * math.sin(self.margin))
