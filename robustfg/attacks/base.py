"""The interface of every attack."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustfg.attacks.draws import Draws
from robustfg.attacks.engine import Engine
from robustfg.attacks.freeze import Model
from robustfg.attacks.objectives import Margin, Objective
from robustfg.attacks.threat import Threat
from robustfg.attacks.victim import Victim
from robustfg.errors import UserError


@dataclass(frozen=True)
class Attempt:
    """Where ``B`` samples stand after one restart.

    A sample fooled in an earlier restart was not attacked again: it keeps that image, and its counts are 0.
    """

    image: Tensor
    """``(B, C, H, W)``, inside the threat model."""
    margin: Tensor
    """``(B,)`` decision margin the search saw there, negative where it succeeded; NaN where it did not look."""
    first_success: Tensor
    """``(B,)`` int64, forward passes before the first wrong prediction; -1 where none was seen."""
    forwards: Tensor
    """``(B,)`` int64, forward passes spent."""
    backwards: Tensor
    """``(B,)`` int64, backward passes spent."""
    dead_gradient: Tensor
    """``(B,)`` bool: the first gradient was all zero or not finite."""
    logits: Tensor | None = None
    """``(B, K)`` logits of the clean images, where this or an earlier round has asked for them; NaN where not."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Looks for an image inside a threat model at which a decision goes wrong. Stateless.

    Args:
        threat: the allowed images.
        restarts: independent tries; each attacks the samples that the earlier ones left, and the worst one counts.
        seed: chooses the random numbers, together with ``name``, draw, restart and sample id.
        name: separates the random numbers of different attacks.
        decision: positive where the attacker has won: by default where the prediction is wrong.
        engine: how the model is run during the search.
    """

    threat: Threat
    restarts: int = 1
    seed: int = 0
    name: str = "attack"
    decision: Objective = field(default_factory=Margin)
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise UserError(f"restarts must be >= 1, got {self.restarts}")

    @abstractmethod
    def search(self, victim: Victim, draws: Draws, restart: int) -> None:
        """One restart: asks ``victim`` about images inside ``self.threat``; the best one asked about is kept.

        Args:
            victim: the samples; not empty at the beginning.
            draws: this restart's random numbers.
            restart: 0 for the first.
        """

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """Settings for the record: norm, epsilon, objective, steps and whatever else makes this attack what it is."""

    @property
    def rounds(self) -> int:
        """How many attempts ``attempts`` yields: the restarts, of every target or stage where there are several."""
        return self.restarts

    @property
    def passes(self) -> int:
        """Forward passes of one sample at the most, over all rounds; progress bars read it."""
        return self.rounds * (int(getattr(self, "steps", 1)) + 1)

    def victim_options(self) -> Mapping[str, bool]:
        """How images are kept: ``minimum`` and ``stay`` of ``Victim``."""
        return {}

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
        clean, label, index = checked(image, label, index)
        logits = None if logits is None else logits.detach()
        before: Attempt | None = None
        for restart in range(self.rounds):
            with torch.inference_mode(False):
                before = self._attempt(model, clean, label, index, restart, draw, logits, before)
            self.threat.check(before.image, clean)
            yield before

    def __call__(
        self, model: Model, image: Tensor, label: Tensor, index: Tensor | None = None, *, draw: int = 0
    ) -> Tensor:
        """The image with the smallest margin over all restarts, per sample; arguments as for ``attempts``."""
        best: Attempt | None = None
        for attempt in self.attempts(model, image, label, index, draw=draw):
            if self.rounds > 1 and bool(attempt.margin.isnan().any()):
                attempt = replace(attempt, margin=self._margins(model, attempt.image, label))
            if best is None:
                best = attempt
            else:
                worse = attempt.margin < best.margin
                best.image[worse] = attempt.image[worse]
                best.margin[worse] = attempt.margin[worse]
        assert best is not None
        return best.image

    def _attempt(
        self,
        model: Model,
        clean: Tensor,
        label: Tensor,
        index: Tensor,
        restart: int,
        draw: int,
        logits: Tensor | None,
        before: Attempt | None,
    ) -> Attempt:
        """One restart on the samples that the restarts before left."""
        rows = torch.arange(len(clean), device=clean.device)
        if before is not None:
            rows = (~(before.margin < 0)).nonzero().flatten()
        new = [before.image.clone() if before else clean.clone()]
        new += [before.margin.clone() if before else clean.new_full((len(clean),), float("nan"))]
        zeros = torch.zeros_like(label)
        new += [before.first_success.clone() if before else zeros - 1, zeros, zeros.clone(), zeros.bool()]
        if logits is None and before is not None:
            logits = before.logits
        if len(rows):
            with self.engine.running(model, clean) as run:
                part = None if logits is None else logits.detach().clone()[rows]
                victim = Victim(
                    run, clean[rows], label[rows], index[rows], threat=self.threat, decision=self.decision,
                    logits=part, **self.victim_options(),
                )  # fmt: skip
                self.search(victim, Draws(self.seed, self.name, draw, restart), restart)
                results = victim.results()
                asked = results[3] > 0  # the others were not attacked in this round and stay where they were
                for column, found in zip(new, results, strict=True):
                    column[rows[asked]] = found[asked].to(column.dtype)
            if logits is None and victim.asked is not None:
                logits = victim.asked.new_full((len(clean), victim.asked.shape[1]), torch.nan)
                logits[rows] = victim.asked
        return replace(Attempt(*new), logits=logits)

    def _margins(self, model: Model, image: Tensor, label: Tensor) -> Tensor:
        with self.engine.running(model, image) as run, torch.no_grad():
            return -self.decision(run(image), label.clone())


def checked(image: Tensor, label: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Copies that autograd may use; refuses images that are not pixels in [0, 1]."""
    if image.dim() != 4 or label.shape != image.shape[:1]:
        raise ValueError(f"need images (B, C, H, W) and labels (B,), got {tuple(image.shape)} and {tuple(label.shape)}")
    if index is not None and index.shape != label.shape:
        raise ValueError(f"need one sample id per image, got {tuple(index.shape)} for {tuple(label.shape)}")
    with torch.inference_mode(False):
        image, label = image.detach().clone(), label.detach().clone()
        ids = torch.arange(len(label), device=label.device) if index is None else index.detach().clone()
    if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):
        low, high = torch.aminmax(image)
        raise ValueError(f"images must lie in [0, 1] (normalise inside the model), got [{low:.3g}, {high:.3g}]")
    return image, label, ids
