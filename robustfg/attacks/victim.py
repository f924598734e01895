"""A batch under attack: asks the model, counts every pass, and keeps the best image seen of each sample."""

import warnings
from typing import TypeVarTuple

import torch
from torch import Tensor

from robustfg.attacks.base import Task
from robustfg.attacks.engine import Run
from robustfg.attacks.objectives import Objective
from robustfg.attacks.slope import Slope, derivative
from robustfg.attacks.threat import Threat
from robustfg.attacks.transforms import Change
from robustfg.types import Output, logits_of, mapped

PATIENCE = 8
"""Steps between two looks at who may leave, on devices where a look makes the host wait."""

States = TypeVarTuple("States")


class Victim:
    """The samples of a batch that are still attacked.

    An attack reads ``clean`` ``(b, C, H, W)``, ``label`` and ``index`` ``(b,)``, which shrink as samples leave, asks
    with ``slope`` or ``look``, and calls ``leave`` once a step. Everything asked about is remembered.

    Args:
        run: the model.
        task: the samples.
        threat: the allowed images.
        decision: positive where the attacker has won; the other sign is the decision margin.
        minimum: keep the smallest successful perturbation instead of the smallest margin.
        stay: nobody leaves by itself. Unless ``minimum``, nothing is kept either: the attack says with ``settle`` what
            the result is.

    Attributes:
        asked: clean logits ``(B, K)`` if they were asked for before a sample left.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        *,
        threat: Threat,
        decision: Objective,
        minimum: bool = False,
        stay: bool = False,
    ) -> None:
        self.run, self.threat, self.decision, self.minimum, self.stay = run, threat, decision, minimum, stay
        clean = task.image
        self.clean, self.label, self.index = clean, task.label, task.index
        size, long = len(clean), {"dtype": torch.int64, "device": clean.device}
        self._rows = torch.arange(size, device=clean.device)
        self._logits = task.logits
        self.asked: Tensor | None = None
        self._best = clean
        self._score = clean.new_full((size,), torch.inf, dtype=torch.promote_types(clean.dtype, torch.float32))
        self._margin = torch.full_like(self._score, torch.nan)
        self._fooled = torch.zeros(size, dtype=torch.bool, device=clean.device)
        self._dead = torch.zeros_like(self._fooled)
        self._first = torch.full((size,), -1, **long)  # type: ignore[call-overload]
        self._forwards = torch.zeros_like(self._first)
        self._backwards = torch.zeros_like(self._first)
        self._left: list[Tensor] | None = None  # all samples' columns, once some have left
        self._steps, self._asked = 0, False

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def logits(self) -> Tensor:
        """Clean logits ``(b, K)``, asked for once."""
        if self._logits is None:
            self._logits = logits_of(self.look(self.clean)[0])
            if self._left is None:
                self.asked = self._logits
        return self._logits

    def slope(self, image: Tensor, objective: Objective, *, seen_as: Change | None = None) -> Slope:
        """One forward and one backward pass (times the engine's ``samples``).

        Args:
            image: one image for every sample still attacked.
            objective: what to differentiate.
            seen_as: a differentiable change of the images before the model sees them; what is seen through it decides
                nothing and is not remembered.
        """
        samples = self.run.engine.samples
        value, margin, gradient, output = self._differentiated(image, objective, seen_as)
        for _ in range(samples - 1):
            more = self._differentiated(image, objective, seen_as)
            value, margin, gradient = value + more[0], margin + more[1], gradient + more[2]
        if samples > 1:
            value, margin, gradient = value / samples, margin / samples, gradient / samples
        if seen_as is None:
            self._remember(image.detach(), output, margin, samples)
        else:
            self._forwards += samples
        return Slope(value, self._finite(gradient), margin, output)

    def _differentiated(
        self, image: Tensor, objective: Objective, seen_as: Change | None
    ) -> tuple[Tensor, Tensor, Tensor, Output | Tensor]:
        leaf = image.detach().requires_grad_()
        output = self.run(leaf if seen_as is None else seen_as(leaf))
        value = objective(output, self.label)
        gradient = derivative(value.sum(), leaf)
        output = mapped(output, torch.Tensor.detach)
        return value.detach(), -self.decision(output, self.label), gradient, output

    def look(self, image: Tensor, of: Tensor | None = None, *, graph: bool = False) -> tuple[Output | Tensor, Tensor]:
        """One forward pass: the model's answer and the decision margin, ``(n,)``.

        Args:
            image: ``(n, C, H, W)``, one for every sample still attacked, or several where ``of`` says whose.
            of: ``(n,)`` positions among the samples still attacked.
            graph: keep the graph, for ``pull``.
        """
        label = self.label if of is None else self.label[of]
        samples = self.run.engine.samples
        with torch.set_grad_enabled(graph):
            output = self.run(image)
            margin = -self.decision(mapped(output, torch.Tensor.detach), label)
            for _ in range(samples - 1):
                margin = margin - self.decision(mapped(self.run(image), torch.Tensor.detach), label)
        margin = margin / samples
        if of is None:
            self._remember(image.detach(), output, margin, samples)
        else:
            self._remember_some(image.detach(), output, margin, of, samples)
        return output, margin

    def pull(self, value: Tensor, image: Tensor, *, again: bool = False) -> Tensor:
        """One backward pass: the gradient of ``value.sum()`` with respect to the image asked about with ``graph``."""
        gradient = derivative(value.sum(), image, again=again)
        return self._finite(gradient, owned=not again)

    def leave(self, *state: *States) -> tuple[*States]:
        """Lets fooled samples go; returns the attack's state without them.

        Args:
            state: tensors with one row for every sample still attacked; anything else is given back as it is.
        """
        self._steps += 1
        if self.stay or (self.clean.device.type != "cpu" and self._steps % PATIENCE):
            return state
        return self.keep(~self._fooled, *state)

    def keep(self, mask: Tensor, *state: *States) -> tuple[*States]:
        """Lets the samples go that ``mask`` ``(b,)`` does not name; returns the attack's state without them."""
        if bool(mask.all()):
            return state
        if self._left is None:
            self._left = [column.clone() for column in self._flush()]
        else:
            self._flush()
        here = len(mask)
        self.clean, self.label, self.index = self.clean[mask], self.label[mask], self.index[mask]
        self._rows, self._best = self._rows[mask], self._best[mask]
        self._logits = None if self._logits is None else self._logits[mask]
        (
            self._score, self._margin, self._fooled, self._dead, self._first, self._forwards, self._backwards,
        ) = (column[mask] for column in self._columns())  # fmt: skip
        kept = tuple(s[mask] if isinstance(s, Tensor) and s.dim() and len(s) == here else s for s in state)
        return kept  # type: ignore[return-value]

    def settle(self, image: Tensor, mask: Tensor | None = None) -> None:
        """Says what the result is, one image for every sample still attacked, whatever was better before.

        Args:
            image: ``(b, C, H, W)``.
            mask: ``(b,)``, only for these.
        """
        unseen = torch.full_like(self._margin, torch.nan)
        if mask is None:
            self._best, self._margin = image.detach(), unseen
        else:
            self._best = torch.where(mask[:, None, None, None], image.detach(), self._best)
            self._margin = torch.where(mask, unseen, self._margin)

    def charge(self, forwards: Tensor, backwards: Tensor) -> None:
        """Counts passes that somebody else spent on the samples still attacked, ``(b,)`` int64 each."""
        self._forwards, self._backwards = self._forwards + forwards, self._backwards + backwards

    def best(self) -> tuple[Tensor, Tensor]:
        """The image kept of every sample still attacked, and its margin."""
        return self._best, self._margin

    def results(self) -> tuple[Tensor, ...]:
        """Of all ``B`` samples: image, margin, first_success, forwards, backwards, dead_gradient."""
        image, _, margin, _, dead, first, forwards, backwards = self._flush()
        return image, margin, first, forwards, backwards, dead

    def _columns(self) -> tuple[Tensor, ...]:
        return (
            self._score, self._margin, self._fooled, self._dead, self._first, self._forwards, self._backwards,
        )  # fmt: skip

    def _flush(self) -> list[Tensor]:
        """The columns of all samples, brought up to date."""
        here = [self._best, *self._columns()]
        if self._left is None:
            return here
        for left, column in zip(self._left, here, strict=True):
            left[self._rows] = column
        return self._left

    def _finite(self, gradient: Tensor, *, owned: bool = True) -> Tensor:
        """The gradient with 0 where it is not finite; ``owned`` if nobody else holds it, so that it may be changed."""
        if not self._steps:  # the first gradient of the search
            low, high = gradient.flatten(1).amin(1), gradient.flatten(1).amax(1)  # NaN where any is
            alive = ((low < 0) | (high > 0)) & low.isfinite() & high.isfinite()
            self._dead = torch.where(self._backwards == 0, ~alive, self._dead)
        self._backwards += self.run.engine.samples
        dense = gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0, out=gradient if owned and dense else None)

    def clearance(self, output: Output | Tensor) -> Tensor:
        """How far below 0 margins must lie to count as a success, ``(n,)``: what the run's arithmetic may be off."""
        return self.run.tolerance * logits_of(output).detach().abs().amax(1).clamp_min(1)

    def _success(self, output: Output | Tensor, margin: Tensor) -> Tensor:
        return margin < -self.clearance(output) if self.run.tolerance else margin < 0

    def _scored(self, image: Tensor, clean: Tensor, margin: Tensor, won: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, and which samples need no better image."""
        if not self.minimum:
            return margin, won
        size = self.threat.size(image.double() - clean.double())
        return torch.where(won, size.to(margin.dtype), torch.inf), won & (size <= self.threat.radius)

    def _answered(self, output: Output | Tensor) -> None:
        """Says once what an attacker must know about the model's first answer."""
        if not self._asked:
            probabilities = logits_of(output).detach()
            if bool((probabilities >= 0).all() & ((probabilities.sum(1) - 1).abs() < 1e-4).all()):
                warnings.warn(
                    "the model seems to return probabilities: attacks need logits (cross-entropy on probabilities is "
                    "weak); take the softmax out of the model",
                    stacklevel=2,
                )
        self._asked = True

    def _remember(self, image: Tensor, output: Output | Tensor, margin: Tensor, samples: int) -> None:
        self._answered(output)
        won = self._success(output, margin)
        self._first = torch.where((margin < 0) & (self._first < 0), self._forwards, self._first)
        self._forwards = self._forwards + samples
        if self.stay and not self.minimum:
            return
        score, done = self._scored(image, self.clean, margin, won)
        better = score < self._score if self.minimum else (score < self._score) & ~self._fooled
        if self.clean.device.type == "cpu" and bool(better.all()):
            self._best, self._score, self._margin = image, score.to(self._score.dtype), margin.to(self._margin.dtype)
        else:
            self._best = torch.where(better[:, None, None, None], image, self._best)
            self._score = torch.where(better, score.to(self._score.dtype), self._score)
            self._margin = torch.where(better, margin.to(self._margin.dtype), self._margin)
        self._fooled = self._fooled | done

    def _remember_some(self, image: Tensor, output: Output | Tensor, margin: Tensor, of: Tensor, samples: int) -> None:
        """As ``_remember`` for several images of some samples: the best of each sample's images counts."""
        self._answered(output)
        won = self._success(output, margin)
        score, done = self._scored(image, self.clean[of], margin, won)
        score = score.to(self._score.dtype).nan_to_num(nan=torch.inf, posinf=torch.inf)
        least = torch.full_like(self._score, torch.inf).scatter_reduce(0, of, score, "amin")
        place = torch.arange(len(of), device=of.device)
        place = torch.where(score == least[of], place, len(of))
        pick = torch.full_like(self._rows, len(of)).scatter_reduce(0, of, place, "amin")
        better = (least < self._score) & (pick < len(of))
        if not self.minimum:
            better &= ~self._fooled
        chosen = pick.clamp_max(len(of) - 1)
        self._best = torch.where(better[:, None, None, None], image[chosen], self._best)
        self._score = torch.where(better, least, self._score)
        self._margin = torch.where(better, margin[chosen].to(self._margin.dtype), self._margin)
        asked = torch.zeros_like(self._forwards).index_add(0, of, torch.full_like(of, samples))
        wrong = torch.zeros_like(self._forwards).index_add(0, of, (margin < 0).long()) > 0
        self._first = torch.where(wrong & (self._first < 0), self._forwards, self._first)
        self._forwards += asked
        self._fooled = self._fooled | (torch.zeros_like(self._forwards).index_add(0, of, done.long()) > 0)
