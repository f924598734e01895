"""The progress bar of an evaluation: attack, batch, forwards and the time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from robustfg.attacks import Attack


class AttackProgress:
    """Counts attack steps of all batches, so that the time left can be told.

    Args:
        attacks: what runs on every batch.
        batches: number of batches of this process.
        enabled: whether to show anything.
    """

    def __init__(self, attacks: list[Attack], batches: int, *, enabled: bool) -> None:
        self.batches, self.finished = batches, 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not enabled,
        )
        self.task = self.bar.add_task("attacking", total=batches * sum(steps_of(attack) for attack in attacks))
        self.bar.start()

    @contextmanager
    def attacking(self, attack: Attack, model: nn.Module, batch: int) -> Iterator[None]:
        """Follows one attack on one batch by the model's forwards; an early end counts as done."""
        name = attack.name.removeprefix("check:")
        self.bar.update(self.task, description=f"{name}, batch {batch + 1}/{self.batches}")
        end = self.finished + steps_of(attack)

        def step(module: nn.Module, inputs: Any) -> None:
            self.finished = min(self.finished + 1, end)
            self.bar.update(self.task, completed=self.finished)

        hook = model.register_forward_pre_hook(step)
        try:
            yield
        finally:
            hook.remove()
            self.finished = end
            self.bar.update(self.task, completed=end)

    def stop(self) -> None:
        self.bar.stop()


def steps_of(attack: Attack) -> int:
    """Forwards of an attack on one batch at the most."""
    return attack.rounds * (getattr(attack, "steps", 1) + 1)
