"""APGD in l-inf and l2 (Croce & Hein 2020): projected gradient ascent that finds its own step length."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.batch.input_gradient import InputGradient, unchanged
from robustfg.attacks.gradient.ascent import Ascent
from robustfg.attacks.rng.streams import Draws
from robustfg.core.errors import UserError


class Track(NamedTuple):
    """Where the samples stand, one row each. Images and gradients are ``(b, C, H, W)``, the rest ``(b,)``."""

    current: Tensor
    previous: Tensor
    gradient: Tensor
    """At ``current``."""
    value: Tensor
    """Objective at ``current``."""
    rises: Tensor
    """Steps since the last checkpoint that raised the objective."""
    best: Tensor
    """Image with the highest objective so far."""
    best_gradient: Tensor
    best_value: Tensor
    length: Tensor
    """Step length."""
    mark: Tensor
    """What the next checkpoint compares with."""
    target: Tensor

    def after(self, answer: InputGradient) -> Self:
        """Takes in what the model answered at ``current``."""
        higher = answer.value > self.best_value
        wide = higher[:, None, None, None]
        return self._replace(
            gradient=answer.gradient,
            value=answer.value,
            rises=self.rises + (answer.value > self.value),
            best=torch.where(wide, self.current, self.best),
            best_gradient=torch.where(wide, answer.gradient, self.best_gradient),
            best_value=torch.where(higher, answer.value, self.best_value),
        )

    def back_to_best(self, where: Tensor) -> Self:
        """Goes back to the best image where ``where`` ``(b,)`` says so; its gradient is known already."""
        wide = where[:, None, None, None]
        return self._replace(
            current=torch.where(wide, self.best, self.current),
            gradient=torch.where(wide, self.best_gradient, self.gradient),
            value=torch.where(where, self.best_value, self.value),
        )


@dataclass(frozen=True, kw_only=True)
class AutomaticAscent(Ascent):
    """What the APGD attacks share: a round of n steps is n + 1 forward and n backward passes.

    The best image by the objective is where the search goes back to; the result is the worst one by the decision.

    Args:
        steps: gradient steps per round; 100 in the papers.
        random_start: start at a point drawn uniformly from the ball, otherwise at the clean image. With several
            restarts and no random start the first begins at the clean image and the others at random.
    """

    steps: int = 100
    random_start: bool = True

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "random_start": self.random_start}

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        target = self.aim(batch, restart)
        if len(batch):
            start = self.random_image(batch, draws) if self.random_start or self.again(restart) else batch.clean
            self.climb(batch, start, target)

    def climb(self, batch: ActiveBatch, start: Tensor, target: Tensor, *, rehearsal: bool = False) -> Track:
        """Takes the steps of one round; returns where the samples that are left stand.

        Args:
            batch: the samples; not empty.
            start: ``(b, C, H, W)`` inside ``self.threat``.
            target: ``(b,)`` as ``aim`` gave them.
            rehearsal: ``self.threat`` is not the batch's: the images are no candidates, and the last one's gradient is
                taken, too.
        """
        seen_as = unchanged if rehearsal else None
        answer = batch.gradient(start, self.towards(batch, target), seen_as=seen_as)
        track = Track(
            start, start, answer.gradient, answer.value, torch.zeros_like(target), start, answer.gradient,
            answer.value, torch.empty_like(answer.value), torch.empty_like(answer.value), target,
        )  # fmt: skip
        track = self._begun(track, batch.clean)
        last = 0
        for taken in range(self.steps):
            if taken:
                track = track.after(batch.gradient(track.current, self.towards(batch, track.target), seen_as=seen_as))
            track = Track(*batch.drop_fooled(*track))
            if not len(batch):
                return track
            if taken in self.checkpoints:
                track = self._checked(track, batch.clean, taken - last)._replace(rises=torch.zeros_like(track.target))
                last = taken
            moved = self._moved(track, batch.clean, taken)
            track = track._replace(current=moved, previous=track.current)
        if rehearsal:
            return track.after(batch.gradient(track.current, self.towards(batch, track.target), seen_as=seen_as))
        batch.evaluate(track.current)
        return track

    @property
    @abstractmethod
    def checkpoints(self) -> tuple[int, ...]:
        """Numbers of steps after which the step length is looked at."""

    @abstractmethod
    def _begun(self, track: Track, clean: Tensor) -> Track:
        """Sets the first ``length`` and ``mark``."""

    @abstractmethod
    def _checked(self, track: Track, clean: Tensor, period: int) -> Track:
        """A checkpoint, ``period`` steps after the last."""

    @abstractmethod
    def _moved(self, track: Track, clean: Tensor, taken: int) -> Tensor:
        """The next image."""


@dataclass(frozen=True, kw_only=True)
class APGD(AutomaticAscent):
    """Steps of 2 epsilon with momentum, halved where they stop to help (Croce & Hein 2020, algorithm 1).

    At a checkpoint the step is halved, and the search goes back to its best point, where less than ``rho`` of the steps
    since the last checkpoint raised the objective, or where the best value has not changed since then although the step
    was not halved there. Images, gradients and values all go back, so that the next rise counts from the best value.

    Args:
        rho: share of rising steps.
        momentum: weight of the new step; the rest goes on as the last one did (alpha in the paper).

    Example:
        >>> import torch
        >>> from robustfg.attacks import APGD, Linf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
        >>> (attempt,) = APGD(threat=Linf(epsilon="8/255"), steps=20).attempts(model, images, labels)
        >>> attempt.margin.shape, attempt.forwards.shape
        (torch.Size([2]), torch.Size([2]))
    """

    rho: float = 0.75
    momentum: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.norm == "l1":
            raise UserError("APGD has an algorithm of its own for l1: use L1APGD")
        for option in ("rho", "momentum"):
            if not 0 <= getattr(self, option) <= 1:
                raise UserError(f"{option} must be in [0, 1], got {getattr(self, option)}")

    def describe(self) -> Mapping[str, object]:
        return {**super().describe(), "rho": self.rho, "momentum": self.momentum}

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """``ceil(p n)`` for p = 0.22, 0.41, 0.57, …: each period is 0.03 shorter, at least 0.06."""
        before, place, places = 0, 22, []  # in hundredths, so that nothing is rounded
        while place < 100:
            places.append(-(-place * self.steps // 100))
            before, place = place, place + max(place - before - 3, 6)
        return tuple(sorted(set(places)))

    def _begun(self, track: Track, clean: Tensor) -> Track:
        return track._replace(length=torch.full_like(track.value, 2 * self.threat.reach), mark=track.value)

    def _checked(self, track: Track, clean: Tensor, period: int) -> Track:
        halve = (track.rises < self.rho * period) | (track.best_value <= track.mark)
        return track.back_to_best(halve)._replace(
            length=torch.where(halve, track.length / 2, track.length),
            mark=torch.where(halve, -torch.inf, track.best_value),  # any value is above it: a halved step gets its time
        )

    def _moved(self, track: Track, clean: Tensor, taken: int) -> Tensor:
        step = track.length[:, None, None, None] * self.threat.steepest(track.gradient)
        ahead = self.threat.project(track.current + step, clean)
        if not taken:
            return ahead
        inertia = (1 - self.momentum) * (track.current - track.previous)
        return self.threat.project(track.current + self.momentum * (ahead - track.current) + inertia, clean)
