"""The progress of an evaluation, attack, batch, forwards and the time left: a bar, or lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from robustfg.attacks import Attack
from robustfg.training.callbacks import clock

QUIET = 60.0
"""Seconds after which a log gets a line in the middle of an attack on a batch."""


class AttackProgress:
    """Counts forward passes of all batches, so that the time left can be told.

    A terminal shows a bar. Anything else, such as the log of a cluster's job, gets a line for every attack and batch.

    Args:
        attacks: what runs on every batch.
        batches: number of batches of this process.
        enabled: whether to show anything.
    """

    def __init__(self, attacks: list[Attack], batches: int, *, enabled: bool) -> None:
        self.batches, self.finished = batches, 0
        self.total = batches * sum(attack.passes for attack in attacks)
        self.began = self.told = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("passes"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not enabled,
        )
        self.lines = enabled and not self.bar.console.is_terminal
        if self.lines:
            self.bar = Progress(disable=True)
        self.task = self.bar.add_task("attacking", total=self.total)
        self.bar.start()

    @contextmanager
    def attacking(self, attack: Attack, model: nn.Module, batch: int) -> Iterator[None]:
        """Follows one attack on one batch by the model's forwards; an early end counts as done."""
        name = attack.name.removeprefix("check:")
        what = f"{name}, batch {batch + 1}/{self.batches}"
        self.bar.update(self.task, description=what)
        end = self.finished + attack.passes

        def step(module: nn.Module, inputs: Any) -> None:
            self.finished = min(self.finished + 1, end)
            self.bar.update(self.task, completed=self.finished)
            if self.lines and time.monotonic() - self.told > QUIET:
                self._tell(what)

        hook = model.register_forward_pre_hook(step)
        try:
            yield
        finally:
            hook.remove()
            self.finished = end
            self.bar.update(self.task, completed=end)
        if self.lines:
            self._tell(what)

    def _tell(self, what: str) -> None:
        """Prints a line on how far it is."""
        self.told = time.monotonic()
        spent, share = self.told - self.began, self.finished / max(self.total, 1)
        left = clock(spent * (1 - share) / share) if share else "unknown time"
        print(f"{what}: {int(100 * share)} % after {clock(spent)}, about {left} left", flush=True)

    def stop(self) -> None:
        self.bar.stop()
