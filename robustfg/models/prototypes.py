"""Prototypes: latent vectors that belong to classes and remember the patches they were taken from."""

import torch
from torch import Tensor, nn

from robustfg.models.evidence import prototype_evidence


class Prototypes(nn.Module):
    """Vectors in the latent space, several for every class, and what they see in a latent map.

    Args:
        num_classes: number of classes K.
        per_class: prototypes of every class at first; pruning leaves classes with different numbers.
        depth: length D of a vector.
        clamped: keep the vectors in [0, 1], where the latent space is.

    Attributes:
        vectors: ``(P, D)``, uniform in [0, 1] at first.
        classes: ``(P,)`` the class of each.
        image: ``(P,)`` id of the training image that each was taken from, -1 before.
        table: ``(J, K)`` the prototypes of every class; a class with fewer than J repeats its first.
        box: ``(P, 4)`` the patch there: left, top, width and height as shares of the image; NaN before.
    """

    classes: Tensor
    image: Tensor
    box: Tensor
    table: Tensor

    def __init__(self, *, num_classes: int, per_class: int, depth: int, clamped: bool) -> None:
        super().__init__()
        self.num_classes, self.clamped = num_classes, clamped
        self.vectors = nn.Parameter(torch.rand(num_classes * per_class, depth))
        self._describe(torch.arange(num_classes).repeat_interleave(per_class))

    def __len__(self) -> int:
        return len(self.classes)

    def used(self) -> Tensor:
        """The vectors ``(P, D)`` as they count: inside [0, 1] where they are clamped."""
        if self.clamped and self.training:
            self.vectors.data.clamp_(0, 1)  # what the last optimizer step has moved out
        return self.vectors.clamp(0, 1) if self.clamped and not self.training else self.vectors

    def forward(self, latent: Tensor, attention: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
        """Evidence ``(B, P)`` and class distances ``(B, K, h, w)``, see ``prototype_evidence``."""
        return prototype_evidence(latent, self.used(), self.table, attention, epsilon)

    def keep(self, kept: Tensor) -> None:
        """Forgets all prototypes but some, ``(P,)`` bool; every class must keep one."""
        image, box = self.image[kept], self.box[kept]
        self._replace(self.vectors.data[kept], self.classes[kept])
        self.image, self.box = image, box

    def resize(self, classes: Tensor) -> None:
        """Makes room for prototypes of these classes ``(P,)``, of unknown content."""
        self._replace(self.vectors.data.new_zeros(len(classes), self.vectors.shape[1]), classes.to(self.classes.device))

    def _replace(self, vectors: Tensor, classes: Tensor) -> None:
        # In place, since an optimizer may hold the parameter.
        self.vectors.data, self.vectors.grad = vectors, None
        self._describe(classes)

    def _describe(self, classes: Tensor) -> None:
        counts = torch.bincount(classes, minlength=self.num_classes)
        order = classes.argsort(stable=True)
        first = counts.cumsum(0) - counts
        rank = torch.arange(int(counts.max()), device=classes.device)[:, None]
        table = order[first + torch.where(rank < counts, rank, 0)]
        self.register_buffer("classes", classes)
        self.register_buffer("image", torch.full_like(classes, -1))
        self.register_buffer("box", torch.full((len(classes), 4), torch.nan, device=classes.device))
        self.register_buffer("table", table, persistent=False)
