"""The samples under attack: every question that an attack asks of the model goes through here."""

from dataclasses import dataclass
from typing import TypeVarTuple

import torch
from torch import Tensor

from robustfg.attacks.batch.best_so_far import BestSoFar
from robustfg.attacks.batch.confirmation import Confirmation
from robustfg.attacks.batch.input_gradient import Change, InputGradient, gradient_of
from robustfg.attacks.batch.lowest_score import LowestScore, lowest_by_sample, sum_by_sample
from robustfg.attacks.batch.task import Attempt, Task
from robustfg.attacks.objectives.acceptance import Reading
from robustfg.attacks.objectives.logits import Objective
from robustfg.attacks.runtime.engine import Run, average, steps_between_drops
from robustfg.attacks.runtime.validation import warn_of_answers
from robustfg.attacks.threats.base import Threat
from robustfg.core.types import Output, logits_of, mapped

States = TypeVarTuple("States")


@dataclass(frozen=True)
class SearchOptions:
    """What a search keeps of the images it asks about.

    Args:
        minimise_norm: keep the smallest successful perturbation; false: the image with the smallest margin.
        keep_fooled: attack fooled samples to the end. Unless ``minimise_norm``, the result then is what the attack
            says (``ActiveBatch.set_result``), and no other image is kept.
    """

    minimise_norm: bool = False
    keep_fooled: bool = False


class ActiveBatch:
    """The samples of a batch that are still attacked: those that no image so far has fooled.

    An attack reads ``clean`` ``(b, C, H, W)``, ``label`` and ``index`` ``(b,)``, asks with ``gradient`` or
    ``evaluate``, and calls ``drop_fooled`` once a step, after which all of these may be shorter. The best image of
    every sample is kept, and passes are counted. On a GPU fooled samples stay in the batch for a few steps, since
    dropping them makes the host wait; nothing that is asked about them meanwhile is kept or counted.

    Args:
        run: the model.
        task: the samples.
        threat: the allowed images.
        decision: positive where the attacker has won; the decision margin is its negative.
        options: what is kept.
        watch: a reading whose lowest value among wrong answers is kept as well.

    Attributes:
        margin: decision margins ``(b,)`` of the images last asked about for all active samples.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        *,
        threat: Threat,
        decision: Objective,
        options: SearchOptions = SearchOptions(),  # frozen
        watch: Reading | None = None,
    ) -> None:
        self.run, self.threat, self.decision, self.options = run, threat, decision, options
        self.clean, self.label, self.index = task.image, task.label, task.index
        self.margin = task.image.new_empty(0)
        self._logits = self._all_logits = task.logits
        self._samples = torch.arange(len(task.label), device=task.label.device)  # positions in the whole batch
        self._best = BestSoFar.start(task.image)
        self._dropped: list[tuple[Tensor, BestSoFar]] = []
        self._active = torch.ones_like(self._best.fooled)  # false: fooled in an earlier step, and to be dropped
        self._confirmation = Confirmation(run, decision, self._samples)
        self._lowest = None if watch is None else LowestScore(watch, task.image)
        self._steps, self._period = 0, steps_between_drops(task.image.device)
        self._answered = False

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def logits(self) -> Tensor:
        """Clean logits ``(b, K)``, asked for once."""
        if self._logits is None:
            self._logits = logits_of(self.evaluate(self.clean)[0])
            if not self._dropped:
                self._all_logits = self._logits
        return self._logits

    def gradient(self, image: Tensor, objective: Objective, *, seen_as: Change | None = None) -> InputGradient:
        """One forward and one backward pass (times the engine's ``samples``, over which all is averaged).

        Args:
            image: ``(b, C, H, W)``, one for every active sample.
            objective: what is differentiated.
            seen_as: a differentiable change of the images before the model sees them. Answers to changed images are
                counted, but neither they nor the images are kept.
        """
        samples = self.run.engine.samples
        value, gradient, output = self._differentiated(image, objective, seen_as)
        outputs = [output]
        for _ in range(samples - 1):  # one by one: the graphs of all of them need not fit the memory
            more = self._differentiated(image, objective, seen_as)
            value, gradient = value + more[0], gradient + more[1]
            outputs.append(more[2])
        if samples > 1:
            value, gradient, output = value / samples, gradient / samples, average(outputs)
        if seen_as is None:
            self._record(image.detach(), output)
        else:
            self.count_passes(samples)
        return InputGradient(value, self._finite(gradient), output)

    def _differentiated(
        self, image: Tensor, objective: Objective, seen_as: Change | None
    ) -> tuple[Tensor, Tensor, Output | Tensor]:
        leaf = image.detach().requires_grad_()
        output = self.run.once(leaf if seen_as is None else seen_as(leaf), self.index)
        value = objective(output, self.label)
        gradient = gradient_of(value.sum(), leaf)
        return value.detach().to(self._best.margin.dtype), gradient, mapped(output, torch.Tensor.detach)

    def evaluate(
        self, image: Tensor, of: Tensor | None = None, *, graph: bool = False
    ) -> tuple[Output | Tensor, Tensor]:
        """One forward pass (times the engine's ``samples``): the model's answer and the decision margin, ``(n,)``.

        Args:
            image: ``(n, C, H, W)``, one for every active sample, or several for the samples that ``of`` names.
            of: ``(n,)`` positions among the active samples.
            graph: keep the graph, for ``backward``.
        """
        with torch.set_grad_enabled(graph):
            output = self.run(image, self.index if of is None else self.index[of])
        return output, self._record(image.detach(), mapped(output, torch.Tensor.detach), of)

    def backward(
        self, value: Tensor, image: Tensor, *, retain_graph: bool = False, needed: Tensor | None = None
    ) -> Tensor:
        """The gradient of ``value.sum()`` to the images: one backward pass (times the engine's ``samples``).

        Args:
            value: ``(b,)``.
            image: ``(b, C, H, W)`` as evaluated with ``graph``.
            retain_graph: there will be another backward pass through the same graph.
            needed: ``(b,)`` bool, the samples that need a gradient and are charged for it; None: all.
        """
        value = value if needed is None else torch.where(needed, value, 0)
        gradient = gradient_of(value.sum(), image, retain_graph=retain_graph)
        return self._finite(gradient, owned=not retain_graph, needed=needed)

    def logit_error(self, output: Output | Tensor) -> Tensor:
        """By how much a logit must lead in ``output`` so that it surely leads, ``(n,)``: rounding, to aim beyond it."""
        return self.run.logit_error(output)

    def drop_fooled(self, *state: *States) -> tuple[*States]:
        """Ends a step: drops the samples that are fooled; returns the attack's state without them.

        Args:
            state: tensors with one row for every active sample; anything else is returned as it is.
        """
        self._steps += 1
        if self.options.keep_fooled:
            return state
        if self._steps % self._period == 0:
            self._check(self._best.fooled, final=False)
            state = self._remain(~self._best.fooled, *state)
        self._active = ~self._best.fooled
        return state

    def select(self, mask: Tensor, *state: *States) -> tuple[*States]:
        """Goes on with the samples that ``mask`` ``(b,)`` names; returns the attack's state without the others."""
        self._check(~mask, final=True)
        return self._remain(mask, *state)

    def _check(self, mask: Tensor, *, final: bool) -> None:
        """Asks the model itself about what a copy has found for the samples that ``mask`` ``(b,)`` names."""
        if self.run.surrogate_used:
            self._confirmation.check(mask, self._best, self.label, self.index, final=final)

    def _remain(self, mask: Tensor, *state: *States) -> tuple[*States]:
        size, rows = len(mask), mask.nonzero().flatten()
        if len(rows) == size:
            return state
        gone = (~mask).nonzero().flatten()
        self._dropped.append((self._samples[gone], self._best.select(gone)))
        self._samples, self._active, self._best = self._samples[rows], self._active[rows], self._best.select(rows)
        self._confirmation.select(rows)
        self.clean, self.label, self.index = self.clean[rows], self.label[rows], self.index[rows]
        self._logits = None if self._logits is None else self._logits[rows]
        kept = tuple(s[rows] if isinstance(s, Tensor) and s.dim() and len(s) == size else s for s in state)
        return kept  # type: ignore[return-value]

    def set_result(self, image: Tensor, mask: Tensor | None = None) -> None:
        """Makes images the result, whatever was better before; the model has not been asked about them.

        Args:
            image: ``(b, C, H, W)``.
            mask: ``(b,)`` bool, only for these.
        """
        best = self._best
        mask = self._active if mask is None else mask & self._active
        best.improve(mask, image.detach(), best.score, torch.full_like(best.margin, torch.nan))

    def count_passes(self, forwards: Tensor | int, backwards: Tensor | int = 0) -> None:
        """Counts passes spent on the active samples, int64 ``(b,)`` or the same number for all."""
        best = self._best
        if not isinstance(forwards, int) or forwards:
            best.forwards = best.forwards + forwards * self._active
        if not isinstance(backwards, int) or backwards:
            best.backwards = best.backwards + backwards * self._active

    def best(self) -> tuple[Tensor, Tensor]:
        """The image kept of every active sample, and its margin."""
        return self._best.image, self._best.margin

    def results(self) -> Attempt:
        """What the round has found for all ``B`` samples; ends the round.

        Where a score is watched and the attack has not won, the image is that with the lowest score.
        """
        self._check(torch.ones_like(self._active), final=True)
        parts = [*self._dropped, (self._samples, self._best)]
        order = torch.cat([samples for samples, _ in parts]).argsort()
        found = BestSoFar.joined([best for _, best in parts]).select(order) if self._dropped else self._best
        if self._lowest is not None and self._tracks and not self.options.minimise_norm:
            shown = self._lowest.value.isfinite() & ~found.fooled
            found.improve(shown, self._lowest.image, found.score, self._lowest.margin)
        return Attempt(
            image=found.image.contiguous(),
            margin=found.margin,
            first_success=found.first_success,
            forwards=found.forwards,
            backwards=found.backwards,
            dead_gradient=found.dead_gradient,
            logits=self._all_logits,
            least=None if self._lowest is None else self._lowest.value,
        )

    @property
    def surrogate_differs(self) -> Tensor:
        """``(B,)`` bool, the samples that a surrogate copy has misjudged."""
        return self._confirmation.differs

    @property
    def _tracks(self) -> bool:
        """Whether the best image is kept, not only what the attack says."""
        return self.options.minimise_norm or not self.options.keep_fooled

    def _finite(self, gradient: Tensor, *, owned: bool = True, needed: Tensor | None = None) -> Tensor:
        """The gradient with 0 where it is not finite, counted; ``owned``: it may be changed in place."""
        if not self._steps:
            self._best.note_gradient(gradient)
        samples = self.run.engine.samples
        self.count_passes(0, samples if needed is None else samples * needed.long())
        dense = gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0, out=gradient if owned and dense else None)

    def _record(self, image: Tensor, output: Output | Tensor, of: Tensor | None = None) -> Tensor:
        """Margins ``(n,)`` of what was asked; keeps what is better than before and counts the passes."""
        best, logits, samples = self._best, logits_of(output), self.run.engine.samples
        if not self._answered:
            self._answered = True
            warn_of_answers(logits)
        rows = slice(None) if of is None else of
        label, allowed = self.label[rows], self._active[rows]
        margin = -self.decision(output, label).to(best.margin.dtype)
        wrong, score = margin < 0, margin
        if self.options.minimise_norm:
            size = self.threat.size(image.double() - self.clean[rows].double())
            score = torch.where(wrong, size, torch.inf).to(margin.dtype)
            allowed = allowed & (size <= self.threat.radius)
        if self._lowest is not None:
            self._lowest.record(image, output, label, margin, self._samples[rows], allowed)
        solved, at = wrong & allowed, (image, margin)
        if of is None:
            self.margin = margin
        else:  # of each sample's images the best one counts
            wrong, solved = (sum_by_sample(flag, of, len(self)) > 0 for flag in (wrong, solved))
            score, pick = lowest_by_sample(score.nan_to_num(nan=torch.inf, posinf=torch.inf), of, len(self))
            at, logits = (image[pick], margin[pick]), logits[pick]
        best.first_success = torch.where(wrong & (best.first_success < 0), best.forwards, best.first_success)
        better = torch.zeros_like(solved)
        if self._tracks:
            better = score < best.score
            if of is None and not self.options.minimise_norm:  # a margin may be infinite
                better = better | best.margin.isnan()
            better = better & (self._active if self.options.minimise_norm else ~best.fooled)
            best.improve(better, at[0], score, at[1])
            best.fooled = best.fooled | solved
        self._confirmation.record(image if of is None else None, logits, better)
        self.count_passes(samples if of is None else samples * sum_by_sample(torch.ones_like(of), of, len(self)))
        return margin
