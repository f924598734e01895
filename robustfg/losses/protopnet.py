"""ProtoPNet: "This Looks Like That" (Chen et al., NeurIPS 2019)."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import LossModule, Survey
from robustfg.losses.prune import Prune
from robustfg.losses.push import Push
from robustfg.models.prototype_head import PrototypeHead, separation


class ProtoPNet(LossModule):
    """Every class is told by the patches that are nearest to its prototypes.

    L = CE + cluster * C - separation * S + l1 * |off-class weights|, with C (S) the mean over the batch of the smallest
    squared distance between any position and any prototype of the true class (of another class).

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        prototypes_per_class: prototypes of every class.
        prototype_depth: channels of the latent map.
        cluster: weight of C.
        separation: weight of S.
        l1: weight of the sum of the last layer's absolute off-class weights.
        similarity_epsilon: smallest divisor of the similarity.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        prototypes_per_class: int = 10,
        prototype_depth: int = 128,
        cluster: float = 0.8,
        separation: float = 0.08,
        l1: float = 1e-4,
        similarity_epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        self.coefficients = {"cluster": cluster, "separation": separation, "l1": l1}
        for option, value in self.coefficients.items():
            if value < 0:
                raise UserError(f"loss.{option} must be >= 0, got {value}")
        self.prototype = PrototypeHead(
            channels=channels, num_classes=num_classes, per_class=prototypes_per_class, depth=prototype_depth,
            epsilon=similarity_epsilon, clamped=False,
        )  # fmt: skip

    def forward(self, feature_map: Tensor) -> Output:
        seen = self.prototype(feature_map)
        maps = {"class_distance": seen.class_distance}
        return Output(logits=seen.logits, embedding=seen.latent.mean((2, 3)), maps=maps)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        own, other = separation(output.maps["class_distance"], label)
        terms = {
            "classification": F.cross_entropy(output.logits, label),
            "cluster": own.amin((1, 2, 3)).mean(),
            "separation": other.amin((1, 2, 3)).mean(),
            "l1": self.prototype.l1(),
        }
        weights = self.coefficients | {"classification": 1.0, "separation": -self.coefficients["separation"]}
        return {"loss": sum((weights[name] * term for name, term in terms.items()), own.new_zeros(())), **terms}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return self.prototype.groups()

    def survey(self, name: str) -> Survey:
        if name == "push":
            return Push(self.prototype)
        if name == "prune":
            return Prune(self.prototype)
        return super().survey(name)
