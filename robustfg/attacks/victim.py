"""A batch under attack: asks the model, counts every pass, and keeps the best image seen of each sample."""

from typing import TypeVarTuple

import torch
from torch import Tensor

from robustfg.attacks.acceptance import Reading
from robustfg.attacks.at_once import AtOnce
from robustfg.attacks.base import Task
from robustfg.attacks.contract import warn_of_answers
from robustfg.attacks.engine import Run, average
from robustfg.attacks.later import Later
from robustfg.attacks.ledger import Ledger
from robustfg.attacks.notes import Notes
from robustfg.attacks.objectives import Objective
from robustfg.attacks.referee import Referee
from robustfg.attacks.slope import Slope, derivative
from robustfg.attacks.threat import Threat
from robustfg.attacks.transforms import Change
from robustfg.attacks.watch import Watch
from robustfg.types import Output, logits_of, mapped

PATIENCE = 4
"""Steps between two looks at who may leave, where a look makes the host wait; on a GPU the fastest of 1 to 8."""

MOST = 2 * PATIENCE
"""Answers that wait to be looked at, where an attack asks more often than it steps."""

States = TypeVarTuple("States")


class Victim:
    """The samples of a batch that are still attacked.

    An attack reads ``clean`` ``(b, C, H, W)``, ``label`` and ``index`` ``(b,)``, which shrink as samples leave, asks
    with ``slope`` or ``look``, and calls ``leave`` once a step. Everything asked about is remembered. A margin is only
    negative where the model itself is fooled, whatever the search runs on (``Referee``).

    Args:
        run: the model.
        task: the samples.
        threat: the allowed images.
        decision: positive where the attacker has won; the other sign is the decision margin.
        minimum: keep the smallest successful perturbation instead of the smallest margin.
        stay: nobody leaves by itself. Unless ``minimum``, nothing is kept either: the attack says with ``settle`` what
            the result is, and margins are those of what the search runs on.
        watch: a reading whose least value among wrong answers is kept as well.

    Attributes:
        margin: decision margins ``(b,)`` of the images last asked about for everybody. Without ``minimum`` those of
            ``look`` only.
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
        watch: Reading | None = None,
    ) -> None:
        self.run, self.threat, self.decision, self.stay = run, threat, decision, stay
        self.clean, self.label, self.index = task.image, task.label, task.index
        self.margin = task.image.new_empty(0)
        self.asked: Tensor | None = None
        self._logits = task.logits
        self._ledger = Ledger(task.image, threat, minimum=minimum, keeps=minimum or not stay)
        self._referee = Referee(run, task.index)
        self._watch = None if watch is None else Watch(watch, task.image)
        self._wide = self._ledger.now.margin.dtype
        self._steps, self._answered = 0, False
        self._waits = host_waits(task.image.device)
        self._at_once = AtOnce(self._referee, self._ledger, decision, self._watch)
        later = self._waits and not (minimum or stay) and watch is None
        self._later = Later(self._referee, self._ledger, decision) if later else None
        self._counts = self._ledger if self._later is None else self._later
        self._notes = Notes(self._ledger, decision, run.engine.samples)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def logits(self) -> Tensor:
        """Clean logits ``(b, K)``, asked for once."""
        if self._logits is None:
            self._logits = logits_of(self.look(self.clean)[0])
            if self._ledger.whole:
                self.asked = self._logits
        return self._logits

    def slope(self, image: Tensor, objective: Objective, *, seen_as: Change | None = None) -> Slope:
        """One forward and one backward pass (times the engine's ``samples``, over which all is averaged).

        Args:
            image: one image for every sample still attacked.
            objective: what to differentiate.
            seen_as: a differentiable change of the images before the model sees them; what is seen through it decides
                nothing and is not remembered.
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
            self._referee.answered(image.detach(), output, self._ledger)
        if seen_as is not None:
            self.charge(samples)
        elif self._later is not None:
            self._add(image.detach(), output)
        elif self._ledger.keeps or self._watch is not None:
            self._remember(image.detach(), output, None)
        else:
            self._warn(output)
            self._ledger.charge(samples)
            self._notes.add(output, self.label)
        return Slope(value, self._finite(gradient), output)

    def _differentiated(
        self, image: Tensor, objective: Objective, seen_as: Change | None
    ) -> tuple[Tensor, Tensor, Output | Tensor]:
        leaf = image.detach().requires_grad_()
        output = self.run.once(leaf if seen_as is None else seen_as(leaf), self.index)
        value = objective(output, self.label)
        gradient = derivative(value.sum(), leaf)
        return value.detach().to(self._wide), gradient, mapped(output, torch.Tensor.detach)

    def look(self, image: Tensor, of: Tensor | None = None, *, graph: bool = False) -> tuple[Output | Tensor, Tensor]:
        """One forward pass (times the engine's ``samples``): the model's answer and the decision margin, ``(n,)``.

        Args:
            image: ``(n, C, H, W)``, one for every sample still attacked, or several where ``of`` says whose.
            of: ``(n,)`` positions among the samples still attacked.
            graph: keep the graph, for ``pull``.
        """
        with torch.set_grad_enabled(graph):
            output = self.run(image, self.index if of is None else self.index[of])
        told = mapped(output, torch.Tensor.detach)
        if of is None:
            self._referee.answered(image.detach(), told, self._ledger)
        return output, self._remember(image.detach(), told, of)

    def pull(self, value: Tensor, image: Tensor, *, again: bool = False, needed: Tensor | None = None) -> Tensor:
        """One backward pass (times the engine's ``samples``).

        The gradient of ``value.sum()`` with respect to the image asked about with ``graph``.

        Args:
            value: ``(b,)``.
            image: ``(b, C, H, W)``.
            again: there will be another one through the same graph.
            needed: ``(b,)`` bool, who gets a gradient and pays for it: the others are in the graph only because they
                were asked about together. None: everybody.
        """
        value = value if needed is None else torch.where(needed, value, 0)
        gradient = derivative(value.sum(), image, again=again)
        return self._finite(gradient, owned=not again, needed=needed)

    def doubt(self, output: Output | Tensor) -> Tensor:
        """How far a logit must lead in ``output`` so that it also does in the model itself, ``(n,)``; to aim at."""
        return self.run.doubt(output)

    def leave(self, *state: *States) -> tuple[*States]:
        """Lets fooled samples go; returns the attack's state without them.

        Args:
            state: tensors with one row for every sample still attacked; anything else is given back as it is.
        """
        self._steps += 1
        if self.stay:
            return state
        if self._waits and self._steps % PATIENCE:
            self._counts.rest()
            return state
        if self._later is not None:
            self._later.rest()
        self._read()
        return self._keep(~self._ledger.now.fooled, *state)

    def keep(self, mask: Tensor, *state: *States) -> tuple[*States]:
        """Lets the samples go that ``mask`` ``(b,)`` does not name; returns the attack's state without them."""
        self._read()
        return self._keep(mask, *state)

    def _keep(self, mask: Tensor, *state: *States) -> tuple[*States]:
        here, rows = len(mask), mask.nonzero().flatten()
        if len(rows) == here:
            return state
        self._referee.conclude((~mask).nonzero().flatten(), self.label, self.decision, self._ledger)
        self._ledger.keep(rows)
        self._referee.keep(rows)
        if self._later is not None:
            self._later.keep(rows)
        self.clean, self.label, self.index = self.clean[rows], self.label[rows], self.index[rows]
        self._logits = None if self._logits is None else self._logits[rows]
        kept = tuple(s[rows] if isinstance(s, Tensor) and s.dim() and len(s) == here else s for s in state)
        return kept  # type: ignore[return-value]

    def settle(self, image: Tensor, mask: Tensor | None = None) -> None:
        """Says what the result is, one image for every sample still attacked, whatever was better before.

        Args:
            image: ``(b, C, H, W)``.
            mask: ``(b,)``, only for these.
        """
        self._ledger.settle(image, mask)

    def charge(self, forwards: Tensor | int, backwards: Tensor | int = 0) -> None:
        """Counts passes spent on the samples still attacked, ``(b,)`` int64 or of everybody."""
        self._notes.read(self.label)  # which count from the last charge
        self._counts.charge(forwards, backwards)

    def best(self) -> tuple[Tensor, Tensor]:
        """The image kept of every sample still attacked, and its margin."""
        self._read()
        return self._ledger.now.image, self._ledger.now.margin

    def least(self) -> Tensor | None:
        """The least value of the watched reading among wrong answers of all ``B`` samples, when all is asked.

        Infinite where none was wrong. Where the decision is not won, the image kept becomes the one it was seen at.
        """
        if self._watch is None:
            return None
        kept = self._watch.least.isfinite() & self._ledger.keeps & (not self._ledger.minimum)
        self._ledger.conclude(self._watch.image, self._watch.margin, kept)
        return self._watch.least

    def results(self) -> tuple[Tensor, ...]:
        """Of all ``B`` samples: image, margin, first_success, forwards, backwards, dead_gradient."""
        self._read()
        everyone = torch.arange(len(self.label), device=self.label.device)
        self._referee.conclude(everyone, self.label, self.decision, self._ledger)
        found = self._ledger.all()
        return found.image.contiguous(), found.margin, found.first, found.forwards, found.backwards, found.dead

    @property
    def doubted(self) -> Tensor:
        """Of all ``B`` samples, for whom a copy has answered otherwise than the model."""
        return self._referee.doubted

    def _finite(self, gradient: Tensor, *, owned: bool = True, needed: Tensor | None = None) -> Tensor:
        """The gradient with 0 where it is not finite; ``owned`` if nobody else holds it, so that it may be changed."""
        if not self._steps and (self._later is None or not self._later.differentiated):
            self._ledger.differentiated(gradient)
        samples = self.run.engine.samples
        self._counts.charge(0, samples if needed is None else samples * needed.long())
        dense = gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last)
        return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0, out=gradient if owned and dense else None)

    def _remember(self, image: Tensor, output: Output | Tensor, of: Tensor | None) -> Tensor:
        """Margins ``(n,)`` of what was asked; counts the passes and keeps what is better than before."""
        if self._later is not None and of is None:
            self._add(image, output)
            self.margin = -self.decision(output, self.label).to(self._wide)
            return self.margin
        self._read()
        self._warn(output)
        clean, label = (whose if of is None else whose[of] for whose in (self.clean, self.label))
        margin, passes = self._at_once.saw(image, output, clean=clean, label=label, of=of)
        if of is None:
            self.margin = margin
        self.charge(passes)
        return margin

    def _add(self, image: Tensor, output: Output | Tensor) -> None:
        """``_remember``, all of it later."""
        assert self._later is not None
        self._warn(output)
        if self._later.answers == MOST:
            self._read()
        self._later.add(image, output)
        self.charge(self.run.engine.samples)

    def _read(self) -> None:
        """Tells the ledger all that is known."""
        self._notes.read(self.label)
        if self._later is not None:
            self._later.read(self.clean, self.label)

    def _warn(self, output: Output | Tensor) -> None:
        if not self._answered:
            self._answered = True
            warn_of_answers(logits_of(output))


def host_waits(device: torch.device) -> bool:
    """Whether reading a value makes the host wait until the device has done all before."""
    return device.type != "cpu"
