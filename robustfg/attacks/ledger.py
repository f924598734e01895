"""What is kept of every sample of a batch: the best image, its margin, and the passes spent."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustfg.attacks.threat import Threat


def least_of(value: Tensor, of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The least of each sample's values ``(count,)``, and the first place where it stands.

    Infinite where a sample has none; then the place is that of any infinite one, or ``n``.

    Args:
        value: ``(n,)``, not NaN.
        of: ``(n,)`` whose they are.
        count: samples.
    """
    least = value.new_full((count,), torch.inf).scatter_reduce(0, of, value, "amin")
    place = torch.where(value == least[of], torch.arange(len(of), device=of.device), len(of))
    first = torch.full((count,), len(of), device=of.device).scatter_reduce(0, of, place, "amin")
    return least, first


class Columns(NamedTuple):
    """One row a sample, ``(b,)`` but for the images."""

    image: Tensor
    """``(b, C, H, W)``, the best one seen."""
    score: Tensor
    """What it is the best by: the margin, or the size where the smallest success is kept."""
    margin: Tensor
    fooled: Tensor
    """Needs no better image."""
    dead: Tensor
    """The first gradient was all zero or not finite."""
    first: Tensor
    """Forward passes before the first wrong prediction; -1: none was seen."""
    forwards: Tensor
    backwards: Tensor


class Ledger:
    """The columns of the samples still attacked, ``now``, and of those that have left.

    Args:
        clean: ``(B, C, H, W)`` all samples.
        threat: the allowed images.
        minimum: keep the smallest successful perturbation instead of the smallest margin.
        keeps: false: images are settled by the attack alone.
    """

    def __init__(self, clean: Tensor, threat: Threat, *, minimum: bool, keeps: bool) -> None:
        self.threat, self.minimum, self.keeps = threat, minimum, keeps
        size, device = len(clean), clean.device
        wide = torch.promote_types(clean.dtype, torch.float32)
        none = torch.zeros(size, dtype=torch.int64, device=device)
        self.rows = torch.arange(size, device=device)
        self.now = Columns(
            image=clean,
            score=torch.full((size,), torch.inf, dtype=wide, device=device),
            margin=torch.full((size,), torch.nan, dtype=wide, device=device),
            fooled=none.bool(),
            dead=none.bool(),
            first=none - 1,
            forwards=none,
            backwards=none,
        )
        self._all: Columns | None = None

    @property
    def whole(self) -> bool:
        """Nobody has left yet."""
        return self._all is None

    def all(self) -> Columns:
        """The columns of all samples."""
        if self._all is None:
            return self.now
        for everyone, column in zip(self._all, self.now, strict=True):
            everyone[self.rows] = column
        return self._all

    def keep(self, mask: Tensor) -> None:
        """Lets the samples go that ``mask`` ``(b,)`` does not name."""
        everyone = self.all()
        if self._all is None:
            self._all = Columns(*(column.clone() for column in everyone))
        self.rows = self.rows[mask]
        self.now = Columns(*(column[mask] for column in self.now))

    def charge(self, forwards: Tensor | int, backwards: Tensor | int = 0) -> None:
        """Counts passes, ``(b,)`` or of everybody."""
        self.now = self.now._replace(forwards=self.now.forwards + forwards, backwards=self.now.backwards + backwards)

    def settle(self, image: Tensor, mask: Tensor | None) -> None:
        """Says what the result is, for whom ``mask`` ``(b,)`` names or for everybody, with a margin nobody has seen."""
        if mask is None:
            mask = torch.ones_like(self.now.fooled)
        self._take(mask, image, self.now.score, torch.full_like(self.now.margin, torch.nan))

    def differentiated(self, gradient: Tensor) -> None:
        """Takes in the first gradient of the search."""
        low, high = gradient.amin((1, 2, 3)), gradient.amax((1, 2, 3))  # NaN where any is
        alive = ((low < 0) | (high > 0)) & low.isfinite() & high.isfinite()
        self.now = self.now._replace(dead=torch.where(self.now.backwards == 0, ~alive, self.now.dead))

    def saw(self, image: Tensor, clean: Tensor, margin: Tensor) -> None:
        """Takes in one image of every sample, not yet charged."""
        self._first(margin < 0)
        if not self.keeps:
            return
        score, done = self._scored(image, clean, margin)
        self._take(self._better(score), image, score, margin)
        self.now = self.now._replace(fooled=self.now.fooled | done)

    def saw_some(self, image: Tensor, clean: Tensor, margin: Tensor, of: Tensor) -> None:
        """Takes in several images of some samples, of which each sample's best counts.

        Args:
            image: ``(n, C, H, W)``.
            clean: ``(n, C, H, W)``.
            margin: ``(n,)``.
            of: ``(n,)`` whose they are.
        """
        self._first(self._any(margin < 0, of))
        if not self.keeps:
            return
        score, done = self._scored(image, clean, margin)
        score = score.nan_to_num(nan=torch.inf, posinf=torch.inf)
        least, pick = least_of(score, of, len(self.rows))
        chosen = pick.clamp_max(len(of) - 1)
        self._take(self._better(least) & (pick < len(of)), image[chosen], least, margin[chosen])
        self.now = self.now._replace(fooled=self.now.fooled | self._any(done, of))

    def conclude(self, image: Tensor, margin: Tensor, where: Tensor) -> None:
        """Puts other images in the place of those that have not won; of all samples, when the search is over.

        Args:
            image: ``(B, C, H, W)``.
            margin: ``(B,)`` theirs.
            where: ``(B,)``, only for these.
        """
        found = self.all()
        self.rows, self._all = torch.arange(len(where), device=where.device), None
        self.now = found
        self._take(where & ~found.fooled, image, found.score, margin)

    def _any(self, flag: Tensor, of: Tensor) -> Tensor:
        return torch.zeros_like(self.now.forwards).index_add(0, of, flag.long()) > 0

    def _first(self, wrong: Tensor) -> None:
        first = torch.where(wrong & (self.now.first < 0), self.now.forwards, self.now.first)
        self.now = self.now._replace(first=first)

    def _scored(self, image: Tensor, clean: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and which images leave nothing to be done."""
        won = margin < 0
        if not self.minimum:
            return margin.to(self.now.score.dtype), won
        size = self.threat.size(image.double() - clean.double())
        return torch.where(won, size, torch.inf).to(self.now.score.dtype), won & (size <= self.threat.radius)

    def _better(self, score: Tensor) -> Tensor:
        better = score < self.now.score
        return better if self.minimum else better & ~self.now.fooled

    def _take(self, mask: Tensor, image: Tensor, score: Tensor, margin: Tensor) -> None:
        image, margin = image.detach(), margin.to(self.now.margin.dtype)
        if mask.device.type == "cpu" and bool(mask.all()):  # saves copies; elsewhere the host would wait
            self.now = self.now._replace(image=image, score=score, margin=margin)
            return
        self.now = self.now._replace(
            image=torch.where(mask[:, None, None, None], image, self.now.image),
            score=torch.where(mask, score, self.now.score),
            margin=torch.where(mask, margin, self.now.margin),
        )
