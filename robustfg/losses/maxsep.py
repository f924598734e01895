"""Maximal separation by attentional clustering: Nakka & Salzmann (ACCV 2020), as released or repaired."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.base import LossModule, Survey
from robustfg.losses.prune import Prune
from robustfg.losses.push import Push
from robustfg.models.attention import AttentionalPooling, attention_map, is_dead
from robustfg.models.prototype_head import PrototypeHead, separation


class MaximalSeparation(LossModule):
    """Pulls attended patches to prototypes of their own class and pushes them from those of all others.

    L = CE(prototype head) + attention * CE(attention head) + cluster * C - separation * S + l1 * |off-class weights|,
    with C (S) the mean over batch and positions of attention times the squared distance to the nearest prototype of the
    true class (of another class). ``dead_maps`` and ``dead_weighing_maps`` are the shares of samples whose map for the
    prediction, or for C and S, is nowhere positive.

    The defaults repair the released code, which is ``conf/loss/maxsep_released.yaml``.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        head: which head decides, ``"attention"`` (the paper's Ours-A) or ``"prototype"`` (Ours-FR).
        prototypes_per_class: prototypes of every class.
        prototype_depth: channels of the latent map.
        attention: weight of the attention head's cross-entropy.
        cluster: weight of C.
        separation: weight of S.
        l1: weight of the sum of the last layer's absolute off-class weights.
        dropout: share of features hidden from the class maps in training.
        dropout_in_maps: also where the maps are made, so that in training they are random. As released.
        attention_epsilon: smallest divisor of the attention map. 0, as released, makes a dead map NaN.
        attention_over_batch: weigh C and S by the mean map of the batch instead of the sample's own. As released, where
            ``(B, 1, h, w) * (B, h, w)`` pairs all maps with all samples. A prediction uses the own map in any case.
        true_class_attention: weigh C and S by the map of the true class. False, as released: by the largest over all
            classes, so that a wrong class shapes it.
        detach_attention: C and S do not train the attention. False, as released: C also falls as the map shrinks.
        similarity_epsilon: 1e-4 in the released code; the paper is said to have 1e-5.
        clamp_prototypes: keep the prototypes in [0, 1], where all latent vectors are. The released code does not.
        push_by_evidence: push a prototype to the own-class patch with the largest attention times similarity. False, as
            released: to the nearest one, which may be background.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        head: str = "prototype",
        prototypes_per_class: int = 10,
        prototype_depth: int = 128,
        attention: float = 1.0,
        cluster: float = 100.0,
        separation: float = 0.08,
        l1: float = 1e-4,
        dropout: float = 0.8,
        dropout_in_maps: bool = False,
        attention_epsilon: float = 1e-6,
        attention_over_batch: bool = False,
        true_class_attention: bool = True,
        detach_attention: bool = True,
        similarity_epsilon: float = 1e-4,
        clamp_prototypes: bool = True,
        push_by_evidence: bool = True,
    ) -> None:
        super().__init__()
        self.coefficients = {"attention": attention, "cluster": cluster, "separation": separation, "l1": l1}
        for option, value in {**self.coefficients, "attention_epsilon": attention_epsilon}.items():
            if value < 0:
                raise UserError(f"loss.{option} must be >= 0, got {value}")
        if not 0 <= dropout < 1:
            raise UserError(f"loss.dropout must be in [0, 1), got {dropout}")
        if head not in ("attention", "prototype"):
            raise UserError(f"loss.head must be attention or prototype, got {head}")
        self.head, self.attention_epsilon = head, attention_epsilon
        self.attention_over_batch, self.true_class_attention = attention_over_batch, true_class_attention
        self.detach_attention, self.push_by_evidence = detach_attention, push_by_evidence
        self.attention = AttentionalPooling(
            channels=channels, num_classes=num_classes, dropout=dropout, dropout_in_maps=dropout_in_maps
        )
        self.prototype = PrototypeHead(
            channels=channels, num_classes=num_classes, per_class=prototypes_per_class, depth=prototype_depth,
            epsilon=similarity_epsilon, clamped=clamp_prototypes,
        )  # fmt: skip

    def forward(self, feature_map: Tensor) -> Output:
        logits, class_maps = self.attention(feature_map)
        attention = attention_map(class_maps, self.attention_epsilon)
        seen = self.prototype(feature_map, attention)
        heads = {"attention": logits, "prototype": seen.logits}
        maps = {"attention": attention, "class_attention": class_maps, "class_distance": seen.class_distance}
        return Output(logits=heads[self.head], embedding=seen.latent.mean((2, 3)), heads=heads, maps=maps)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        weighing = self._weighing_map(output, label)
        weight = weighing.mean(0, keepdim=True) if self.attention_over_batch else weighing
        weight = weight.detach() if self.detach_attention else weight
        own, other = separation(output.maps["class_distance"], label)
        terms = {
            "classification": F.cross_entropy(output.heads["prototype"], label),
            "attention": F.cross_entropy(output.heads["attention"], label),
            "cluster": (weight * own).mean(),
            "separation": (weight * other).mean(),
            "l1": self.prototype.l1(),
        }
        weights = self.coefficients | {"classification": 1.0, "separation": -self.coefficients["separation"]}
        total = sum((weights[name] * term for name, term in terms.items()), own.new_zeros(()))
        dead = {"dead_maps": output.maps["attention"], "dead_weighing_maps": weighing}
        return {"loss": total, **terms} | {name: is_dead(maps).float().mean() for name, maps in dead.items()}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"attention": list(self.attention.parameters()), **self.prototype.groups()}

    def survey(self, name: str) -> Survey:
        if name == "push":
            return Push(self.prototype, attention=self._seen_attention if self.push_by_evidence else None)
        if name == "prune":
            return Prune(self.prototype)
        return super().survey(name)

    def _seen_attention(self, feature_map: Tensor) -> Tensor:
        return attention_map(self.attention(feature_map)[1], self.attention_epsilon)

    def _weighing_map(self, output: Output, label: Tensor) -> Tensor:
        """What every sample's positions count in C and S, ``(B, 1, h, w)``."""
        if not self.true_class_attention:
            return output.maps["attention"]
        samples = torch.arange(len(label), device=label.device)
        own = output.maps["class_attention"][samples, label]
        return attention_map(own[:, None], self.attention_epsilon)
