"""Prune: prototypes go that look like patches of other classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.losses.base import Survey
from robustfg.models.evidence import distances_by_chunk
from robustfg.models.prototype_head import PrototypeHead

NEIGHBOURS, OWN = 6, 3
"""As in ProtoPNet's released code: of so many nearest patches at least so many must be of the prototype's class."""


@dataclass(frozen=True)
class Neighbours:
    """Images nearest to every prototype, nearest first; as many columns as there are images, up to a number."""

    distance: Tensor
    """``(P, n)`` smallest squared distance to a patch of the image."""
    image: Tensor
    """``(P, n)`` ids."""
    label: Tensor
    """``(P, n)`` classes."""

    @classmethod
    def of(cls, parts: "Sequence[Neighbours]", most: int = NEIGHBOURS) -> "Neighbours":
        """The nearest of several; of two at the same distance the one with the smaller id comes first."""
        distance, image, label = (
            torch.cat([getattr(part, name) for part in parts], 1) for name in ("distance", "image", "label")
        )
        by_image = image.sort(dim=1, stable=True).indices
        order = by_image.gather(1, distance.gather(1, by_image).sort(dim=1, stable=True).indices)[:, :most]
        return cls(distance.gather(1, order), image.gather(1, order), label.gather(1, order))


class Prune(Survey):
    """Forgets prototypes whose nearest patches, one an image, are mostly of other classes (ProtoPNet).

    A class of which none would be left keeps the one with the most patches of its own, of these the one nearest to its
    first neighbour, of these the first.

    Args:
        head: whose prototypes.
    """

    def __init__(self, head: PrototypeHead) -> None:
        self.head = head
        count = len(head.prototypes)
        none = torch.zeros(count, 0, dtype=torch.int64)
        self.nearest = Neighbours(torch.zeros(count, 0), none, none)

    @torch.no_grad()
    def see(self, feature_map: Tensor, label: Tensor, index: Tensor) -> None:
        rows = self.head.add_on(feature_map).flatten(2).transpose(1, 2).double()
        vectors = self.head.prototypes.used().double()
        smallest = torch.cat([distances.amin(1) for _, distances in distances_by_chunk(rows, vectors)])
        # float64 rounded to float32: the same image in another batch comes out the same.
        distance = smallest.t().float().cpu()
        image, classes = (value.cpu().expand(len(distance), -1) for value in (index, label))
        self.nearest = Neighbours.of([self.nearest, Neighbours(distance, image, classes)])

    def findings(self) -> Neighbours:
        return self.nearest

    @torch.no_grad()
    def conclude(self, findings: Sequence[Neighbours]) -> Mapping[str, float]:
        """Shrinks the head. Logs how many prototypes are left, and of how many classes one was spared."""
        nearest, classes = Neighbours.of(findings), self.head.prototypes.classes.cpu()
        own = (nearest.label == classes[:, None]).sum(1)
        kept, spared = own >= OWN, 0
        for k in range(self.head.prototypes.num_classes):
            members = (classes == k).nonzero().flatten().tolist()
            if not kept[members].any():
                first = min(members, key=lambda number: (-int(own[number]), nearest.distance[number, :1].tolist()))
                kept[first] = True
                spared += 1
        self.head.keep(kept.to(self.head.prototypes.classes.device))
        return {"prototypes": int(kept.sum()), "spared": spared}
