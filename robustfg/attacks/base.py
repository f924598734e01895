"""The interface of every attack."""

import contextlib
import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from robustfg.attacks.batch.task import Attempt, Task
from robustfg.attacks.objectives.acceptance import Reading
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.runtime.eval_mode import AsItIs, Model
from robustfg.attacks.runtime.validation import steady, warn_of_attempts, warn_of_moods
from robustfg.attacks.settings import object_settings, settings_of
from robustfg.attacks.threats.base import Threat
from robustfg.core.errors import OptionsByName, UserError

TRIED = 4
"""Images on which a model is asked whether it always answers alike."""
_ASKED: "weakref.WeakSet[Model]" = weakref.WeakSet()
"""Models that have been asked so."""


@dataclass(frozen=True, kw_only=True)
class Attack(OptionsByName, ABC):
    """Looks for an image inside a threat model at which a decision goes wrong. Stateless.

    A sample leaves when the decision is won. One run answers for a whole grid of a detector's thresholds if the
    decision is that at the lowest one and the score is watched: whoever cannot be won there is searched to the end,
    and is undetected at every threshold not below ``Attempt.least``.

    Args:
        threat: the allowed images.
        restarts: independent tries; each attacks the samples that the earlier ones left, and the worst one counts.
        seed: chooses the random numbers, together with ``name``, draw, restart and sample id.
        name: separates the random numbers of different attacks.
        decision: positive where the attacker has won: by default where the prediction is wrong.
        watch: a reading, such as a detector's score, whose least value among wrong predictions is told as
            ``Attempt.least``. Unless the decision is won, or the attack looks for small perturbations or last iterates,
            the image it was seen at is the attempt's.
    """

    threat: Threat
    restarts: int = 1
    seed: int = 0
    name: str = "attack"
    decision: Objective = field(default_factory=Margin)
    watch: Reading | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Threat):
            raise UserError(f"threat must be such as Linf(epsilon='8/255'), got {self.threat!r}")
        for option in fields(self):
            if option.type in (int, "int"):
                _refuse_fraction(option.name, getattr(self, option.name))
        if self.restarts < 1:
            raise UserError(f"restarts must be >= 1, got {self.restarts}")

    @abstractmethod
    def attempt(self, model: Model, task: Task, restart: int, before: Attempt | None) -> Attempt:
        """One round, on the samples that the rounds before left.

        Args:
            model: what is attacked.
            task: the samples.
            restart: the round, from 0.
            before: the result of the rounds before; None in the first round.
        """

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """Settings for the record: norm, epsilon, objective, steps and whatever else makes this attack what it is."""

    def shown(self) -> Mapping[str, object]:
        """``describe`` with what was changed of the settings that all attacks share; ``summary.json`` holds it."""
        changed: dict[str, object] = {}
        if self.decision != Margin():
            changed["decision"] = {"name": self.decision.name, **object_settings(self.decision)}
        if self.watch is not None:
            changed["watch"] = settings_of(self.watch)
        return {**self.describe(), **changed}

    def settings(self) -> Mapping[str, object]:
        """All settings, nested ones included: two attacks with equal settings do the same."""
        return object_settings(self)

    @property
    def rounds(self) -> int:
        """How many attempts ``attempts`` yields: the restarts, of every target or stage where there are several."""
        return self.restarts

    @property
    def passes(self) -> int:
        """Forward passes of one sample at the most, over all rounds; progress bars read it.

        An engine with ``samples`` multiplies this number. Passes of ``Confirmation`` are not included.
        """
        return self.rounds * (int(getattr(self, "steps", 1)) + 1)

    def passes_in(self, restart: int) -> int:
        """Forward passes of one sample in one round, about."""
        return max(self.passes // self.rounds, 1)

    def within(self, threat: Threat) -> Self:
        """The same attack inside another threat model; steps given as a share of epsilon change with it."""
        return replace(self, threat=threat)

    def run_by(self, engine: Engine) -> Self:
        """The same attack, its model run by ``engine`` unless it has an engine of its own that is not the default."""
        return self

    @property
    def asking(self) -> Engine:
        """The engine that runs the attacked model itself to decide which samples are fooled."""
        return Engine(fold=False)

    def told(self, confusion: Callable[[], Tensor]) -> Self:
        """The same attack, told which classes the model confuses if it aims at those (``MostConfused``).

        Args:
            confusion: measures ``(K, K)``; only called where it is needed.
        """
        return self

    def attempts(
        self,
        model: Model,
        image: Tensor,
        label: Tensor,
        index: Tensor | None = None,
        *,
        draw: int = 0,
        logits: Tensor | None = None,
    ) -> Iterator[Attempt]:
        """Runs the restarts one after another.

        Args:
            model: images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)`` or an ``Output``. A module is attacked in
                eval mode with frozen parameters and is given back as it was.
            image: clean images. They may come from ``inference_mode``.
            label: ``(B,)`` true classes.
            index: ``(B,)`` sample ids, which key the random numbers; 0, 1, … where they are not given.
            draw: asks for other random numbers on the same samples, such as the training step.
            logits: ``(B, K)`` logits of the clean images, where the caller has them, to save a forward pass.
        """
        task = Task.of(image, label, index, draw=draw, logits=logits)
        before: Attempt | None = None
        for restart in range(self.rounds):
            before = self.attempt(model, task, restart, before)
            yield before

    @abstractmethod
    def margins(self, model: Model, image: Tensor, label: Tensor, index: Tensor | None = None) -> Tensor:
        """Decision margins of given images, ``(B,)``: negative where the attack has won; arguments as ``attempts``."""

    def __call__(
        self, model: Model, image: Tensor, label: Tensor, index: Tensor | None = None, *, draw: int = 0
    ) -> Tensor:
        """The image with the smallest margin over all restarts, per sample; arguments as for ``attempts``.

        Warns once, a line each, of what an evaluation checks: gradients that are zero or not finite, logits that are
        not, probabilities, buffers that change in eval mode, answers that change.
        """
        best: Attempt | None = None
        for attempt in self.attempts(model, image, label, index, draw=draw):
            if self.rounds > 1 and bool(attempt.margin.isnan().any()):
                margin = self.margins(model, attempt.image, label, index)
                attempt = replace(attempt, margin=margin.to(attempt.margin.dtype))
            if best is None:
                best, dead = attempt, attempt.dead_gradient
            else:
                worse = attempt.margin < best.margin
                best.image[worse] = attempt.image[worse]
                best.margin[worse] = attempt.margin[worse]
                dead = dead | attempt.dead_gradient
        assert best is not None
        warn_of_attempts(dead, best.margin)
        if not draw:  # a training asks at every step
            self._try_moods(model, image[:TRIED])
        return best.image

    @torch.inference_mode(False)
    def _try_moods(self, model: Model, image: Tensor) -> None:
        """Warns once of a model whose answers to the same image differ; with averaged answers they may."""
        if isinstance(model, AsItIs) or self.asking.samples > 1 or not len(image):
            return
        with contextlib.suppress(TypeError):  # what cannot be remembered is asked again
            if model in _ASKED:
                return
            _ASKED.add(model)
        agree = torch.ones(0, dtype=torch.bool)
        with contextlib.suppress(Exception), self.asking.running(model, image, key=("moods",), passes=1) as run:
            agree = steady(run.once, image.clone(), share=0.05)  # half precision rounds
        warn_of_moods(agree)


def _refuse_fraction(option: str, value: object) -> None:
    """Raises ``UserError`` for anything but a whole number of Python or numpy."""
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{option} must be a whole number, got {value!r}") from None
