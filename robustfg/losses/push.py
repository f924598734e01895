"""Push: every prototype becomes the training patch of its own class that it fits best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustfg.losses.base import Survey
from robustfg.models.prototype_head import PrototypeHead


@dataclass(frozen=True)
class Patch:
    """A training patch that a prototype may become.

    The smallest ``rank`` wins: what is to be small, then the image's id, then the position. So the winner does not
    depend on the order of images or on who saw them.
    """

    rank: tuple[float, int, int]
    distance: float
    vector: Tensor
    box: tuple[float, float, float, float]


class Push(Survey):
    """Moves prototypes to patches (ProtoPNet's projection), and notes image and place.

    Distances are summed directly in float64, so that equal patches in different batches tie exactly. A prototype whose
    class has no image stays where it is.

    Args:
        head: whose prototypes.
        attention: feature map to ``(B, 1, h, w)``; the patch with the largest attention times similarity is taken. None
            for the patch at the smallest distance.
    """

    def __init__(self, head: PrototypeHead, attention: Callable[[Tensor], Tensor] | None = None) -> None:
        self.head, self.attention = head, attention
        self.found: dict[int, Patch] = {}

    @torch.no_grad()
    def see(self, feature_map: Tensor, label: Tensor, index: Tensor) -> None:
        latent = self.head.add_on(feature_map)
        prototypes, (height, width) = self.head.prototypes, latent.shape[2:]
        rows = latent.flatten(2).transpose(1, 2)
        # A dead map without epsilon is NaN: nothing is to be seen there.
        weights = None if self.attention is None else self.attention(feature_map).flatten(1).double().nan_to_num(0.0)
        used = prototypes.used().double()
        members = {k: (prototypes.classes == k).nonzero().flatten() for k in set(label.tolist())}
        positions = torch.arange(height * width, device=rows.device)
        for sample, (own, image) in enumerate(zip(label.tolist(), index.tolist(), strict=True)):
            vectors = used[members[own]]
            distance = (rows[sample].double()[:, None] - vectors).square().sum(2)
            rank = distance if weights is None else -weights[sample, :, None] * self._similarity(distance)
            least = rank.amin(0)
            first = torch.where(rank == least, positions[:, None], len(positions)).amin(0)
            for number, value, place, away in zip(
                members[own].tolist(), least.tolist(), first.tolist(), distance.gather(0, first[None])[0].tolist(),
                strict=True,
            ):  # fmt: skip
                key = (value, image, place)
                if number not in self.found or key < self.found[number].rank:
                    box = (place % width / width, place // width / height, 1 / width, 1 / height)
                    self.found[number] = Patch(key, away, rows[sample, place].cpu(), box)

    def findings(self) -> dict[int, Patch]:
        return self.found

    @torch.no_grad()
    def conclude(self, findings: Sequence[dict[int, Patch]]) -> Mapping[str, float]:
        """Moves the prototypes. Logs how far, in mean squared distance, and the share that are patches of their own."""
        best: dict[int, Patch] = {}
        for found in findings:
            for number, patch in found.items():
                if number not in best or patch.rank < best[number].rank:
                    best[number] = patch
        prototypes = self.head.prototypes
        for number, patch in best.items():
            prototypes.vectors[number] = patch.vector.to(prototypes.vectors)
            prototypes.image[number] = patch.rank[1]
            prototypes.box[number] = torch.tensor(patch.box)
        places = {patch.rank[1:] for patch in best.values()}
        moved = sum(patch.distance for _, patch in sorted(best.items()))
        return {"distance": moved / max(len(best), 1), "distinct": len(places) / max(len(best), 1)}

    def _similarity(self, distance: Tensor) -> Tensor:
        return ((distance + 1) / (distance + self.head.epsilon)).log()
