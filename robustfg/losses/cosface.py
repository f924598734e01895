"""CosFace: cross-entropy on cosines, with a margin taken off the true one."""

from torch import Tensor

from robustfg.core.errors import refuse_outside
from robustfg.losses.cosine import Cosine


class CosFace(Cosine):
    """CosFace (Wang et al., CVPR 2018), alias AM-softmax: s (cos(theta_y) - m) in the place of the true logit.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        embedding_dim: size of a linear layer before the cosines; None for none.
        scale: s; 64 in the face code of the GM authors.
        margin: m; 0.4 there.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        scale: float = 64.0,
        margin: float = 0.4,
    ) -> None:
        super().__init__(channels=channels, num_classes=num_classes, embedding_dim=embedding_dim, scale=scale)
        refuse_outside("loss.margin", margin, least=0, most=2)
        self.margin = margin

    def narrowed(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin
