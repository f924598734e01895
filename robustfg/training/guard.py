"""Catastrophic overfitting: how it is told, and what is done about it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from robustfg.attacks import Attack
from robustfg.core.errors import UserError

MEMORY = 3
"""Good checks whose mean is the standard for the next: the accuracy of one batch alone is noisy."""


class Guard:
    """Tells catastrophic overfitting of single-step training: accuracy under a multi-step attack falls, the other not.

    ``checks_per_epoch`` times an epoch, evenly spread, both accuracies are taken on a training batch. A check is bad if
    the multi-step accuracy lies more than ``drop`` below the mean of the last three good checks while the single-step
    accuracy lies no more than half of that below its own. Wong et al. compare the first batch of an epoch with the one
    before, in the multi-step accuracy only (``drop`` 0.2, PGD-5); the second condition spares training that gets worse
    as a whole.

    After a bad check the weights of the last good one come back and the optimizer's momentum is cleared. Then training
    stops, as the authors' code does; or, given a ``rescue``, goes on with that attack to its end, unguarded.

    Args:
        attack: the multi-step attack of the checks.
        drop: fall of the multi-step accuracy that counts, in (0, 1).
        checks_per_epoch: how often to look; after every batch at the most.
        rescue: the attack to go on with, by its name; None to stop.

    Attributes:
        triggered: there was a bad check.
        weights: of the model and of its running averages at the last good check; None before it and after a bad one.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        drop: float = 0.2,
        checks_per_epoch: int = 1,
        rescue: Mapping[str, Attack] | None = None,
    ) -> None:
        if not 0 < drop < 1:
            raise UserError(f"training.guard.drop must be in (0, 1), got {drop}")
        if checks_per_epoch < 1:
            raise UserError(f"training.guard.checks_per_epoch must be >= 1, got {checks_per_epoch}")
        if rescue is not None and len(rescue) != 1:
            raise UserError(f"training.guard.rescue must be one attack, got {', '.join(rescue) or 'none'}")
        self.attack, self.drop, self.checks_per_epoch = attack, drop, checks_per_epoch
        self.rescue: Attack | None = None
        for name, rescuer in (rescue or {}).items():
            self.rescue = replace(rescuer, name=name)
        self.triggered = False
        self.good: list[tuple[float, float]] = []  # single-step and multi-step accuracy
        self.weights: list[dict[str, Tensor]] | None = None

    def due(self, batch: int, batches: int) -> bool:
        """Whether to look after batch number ``batch``, from 0, of an epoch of ``batches``; always after the last."""
        checks = self.checks_per_epoch
        return not self.triggered and (batch + 1) * checks // batches > batch * checks // batches

    def is_good(self, single: float, multi: float) -> bool:
        """Judges a check by its two accuracies; a good one is remembered."""
        if self.good:
            usual_single, usual_multi = (sum(column) / len(self.good) for column in zip(*self.good, strict=True))
            if multi < usual_multi - self.drop and single >= usual_single - self.drop / 2:
                self.triggered = True
                return False
        self.good = [*self.good, (single, multi)][-MEMORY:]
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"triggered": self.triggered, "good": self.good, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.triggered, self.weights = state["triggered"], state["weights"]
        self.good = [tuple(check) for check in state["good"]]
