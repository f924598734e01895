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

    Where to see who has won makes the host wait, those who have stay in the batch for a while (``rest``). Nothing that
    is asked about them counts, so that results and counts are those of a machine that lets them go at once.

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
        self._standing: Tensor | None = None  # (b,) bool; None: nobody rests
        self._owed = [0, 0]  # passes of all who do not rest that are in no column yet

    @property
    def whole(self) -> bool:
        """Nobody has left yet."""
        return self._all is None

    def all(self) -> Columns:
        """The columns of all samples."""
        self._pay()
        if self._all is None:
            return self.now
        for everyone, column in zip(self._all, self.now, strict=True):
            everyone[self.rows] = column
        return self._all

    def keep(self, rows: Tensor) -> None:
        """Lets the samples go that ``rows`` ``(n,)``, places among those still attacked, does not name."""
        everyone = self.all()
        if self._all is None:
            self._all = Columns(*(column.clone() for column in everyone))
        self.rows, self._standing = self.rows[rows], None
        self.now = Columns(*(column[rows] for column in self.now))

    @property
    def spent(self) -> Tensor:
        """Forward passes so far, ``(b,)``."""
        return self.now.forwards + self._owed[0] if self._owed[0] else self.now.forwards

    def rest(self) -> None:
        """From here on those who have won only wait to be let go."""
        self._pay()
        self._standing = ~self.now.fooled

    @property
    def resting(self) -> bool:
        """Whether somebody may only wait to be let go."""
        return self._standing is not None

    def standing(self, mask: Tensor) -> Tensor:
        """``mask`` ``(b,)`` without those who rest."""
        return mask if self._standing is None else mask & self._standing

    def charge(self, forwards: Tensor | int, backwards: Tensor | int = 0) -> None:
        """Counts passes, ``(b,)`` or of everybody."""
        for place, passes in enumerate((forwards, backwards)):
            if isinstance(passes, int):
                self._owed[place] += passes
            else:
                self._add(place, passes if self._standing is None else passes * self._standing)

    def _pay(self) -> None:
        who = 1 if self._standing is None else self._standing
        for place, passes in enumerate(self._owed):
            if passes:
                self._add(place, who, passes)
        self._owed = [0, 0]

    def _add(self, place: int, passes: Tensor | int, times: int = 1) -> None:
        name = ("forwards", "backwards")[place]
        self.now = self.now._replace(**{name: torch.add(getattr(self.now, name), passes, alpha=times)})

    def settle(self, image: Tensor, mask: Tensor | None) -> None:
        """Says what the result is, for whom ``mask`` ``(b,)`` names or for everybody, with a margin nobody has seen."""
        if mask is None:
            mask = torch.ones_like(self.now.fooled)
        self._take(self.standing(mask), image, self.now.score, torch.full_like(self.now.margin, torch.nan))

    def differentiated(self, gradient: Tensor) -> None:
        """Takes in the first gradient of the search."""
        low, high = gradient.amin((1, 2, 3)), gradient.amax((1, 2, 3))  # NaN where any is
        alive = ((low < 0) | (high > 0)) & low.isfinite() & high.isfinite()
        self._pay()
        self.now = self.now._replace(dead=torch.where(self.now.backwards == 0, ~alive, self.now.dead))

    def saw(self, image: Tensor, clean: Tensor, margin: Tensor, spent: Tensor | None = None) -> None:
        """Takes in one image of every sample, not yet charged.

        Args:
            image: ``(b, C, H, W)``.
            clean: ``(b, C, H, W)``.
            margin: ``(b,)``.
            spent: ``(b,)`` forward passes before they were asked about; None: as many as now.
        """
        wrong = margin < 0
        self._first(wrong, spent)
        if not self.keeps:
            return
        score, done = self._scored(image, clean, margin, wrong)
        self._take(self._better(score), image, score, margin)
        self.now = self.now._replace(fooled=self.now.fooled | done)

    def noted(self, wrong: Tensor, each: int) -> None:
        """Takes in which of the last answers were wrong, ``(n, b)`` in their order, charged already, ``each`` alike."""
        turn = wrong.long().argmax(0)  # the first one
        before = self.now.forwards + self._owed[0] - each * len(wrong)
        first = torch.where(wrong.any(0) & (self.now.first < 0), before + each * turn, self.now.first)
        self.now = self.now._replace(first=first)

    def saw_some(self, image: Tensor, clean: Tensor, margin: Tensor, of: Tensor) -> None:
        """Takes in several images of some samples, of which each sample's best counts.

        Args:
            image: ``(n, C, H, W)``.
            clean: ``(n, C, H, W)``.
            margin: ``(n,)``.
            of: ``(n,)`` whose they are.
        """
        wrong = margin < 0
        self._first(self._any(wrong, of))
        if not self.keeps:
            return
        score, done = self._scored(image, clean, margin, wrong)
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
        self.rows, self._all, self._standing = torch.arange(len(where), device=where.device), None, None
        self.now = found
        self._take(where & ~found.fooled, image, found.score, margin)

    def told(self, rows: Tensor, margin: Tensor) -> None:
        """Puts the model's own margins ``(n,)`` in the place of a copy's, of the images kept; not yet charged.

        Args:
            rows: ``(n,)`` places among the samples still attacked, none of which has won.
            margin: ``(n,)``.
        """
        self._pay()
        now, margin = self.now, margin.to(self.now.margin.dtype)
        first = torch.where((margin < 0) & (now.first[rows] < 0), now.forwards[rows], now.first[rows])
        self.now = now._replace(
            margin=now.margin.index_copy(0, rows, margin),
            score=now.score.index_copy(0, rows, margin),
            fooled=now.fooled.index_copy(0, rows, margin < 0),
            first=now.first.index_copy(0, rows, first),
        )

    def _any(self, flag: Tensor, of: Tensor) -> Tensor:
        return torch.zeros_like(self.now.forwards).index_add(0, of, flag.long()) > 0

    def _first(self, wrong: Tensor, spent: Tensor | None = None) -> None:
        spent = self.spent if spent is None else spent
        self.now = self.now._replace(first=torch.where(wrong & (self.now.first < 0), spent, self.now.first))

    def _scored(self, image: Tensor, clean: Tensor, margin: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and which images leave nothing to be done."""
        if not self.minimum:
            return margin.to(self.now.score.dtype), wrong
        size = self.threat.size(image.double() - clean.double())
        return torch.where(wrong, size, torch.inf).to(self.now.score.dtype), wrong & (size <= self.threat.radius)

    def _better(self, score: Tensor) -> Tensor:
        better = score < self.now.score
        if self.minimum:
            return self.standing(better)
        unseen = self.now.score.isinf() & self.now.margin.isnan() & ~score.isnan()  # an infinite margin is one, too
        return (better | unseen) & ~self.now.fooled

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
