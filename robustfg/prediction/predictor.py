"""A watched classifier that answers for image files."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.types import Output
from robustfg.data.samples import Transform
from robustfg.prediction.paths import images_in
from robustfg.prediction.pictures import Pile, loader


@dataclass(frozen=True)
class Row:
    """The answer for one file."""

    image: str
    """Its path."""
    top: Sequence[tuple[str, float]] = ()
    """The most probable classes with their probabilities, best first; empty where the file failed."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """How abnormal it looks by detector, higher is more abnormal."""
    accepted: Mapping[str, bool] = field(default_factory=dict)
    """By detector, whether the score is at most the threshold; empty where no threshold is known."""
    error: str | None = None
    """Why the file failed."""

    def cells(self) -> dict[str, str | float | bool | None]:
        """The values by column, as they are written; a number that is not finite is None."""
        cells: dict[str, str | float | bool | None] = {"image": self.image, "error": self.error}
        for rank, (name, probability) in enumerate(self.top, 1):
            cells |= {_ranked("class", rank): name, _ranked("probability", rank): probability}
        cells |= {f"score/{name}": score if math.isfinite(score) else None for name, score in self.scores.items()}
        cells |= {f"accepted/{name}": verdict for name, verdict in self.accepted.items()}
        return cells


def _ranked(column: str, rank: int) -> str:
    return column if rank == 1 else f"{column}_{rank}"


def refuse_numbers(*, top: int, classes: int, batch_size: int | None, num_workers: int | None) -> None:
    """Raises ``UserError`` for options that no predictor can have."""
    if not 1 <= top <= classes:
        raise UserError(f"top must be in [1, {classes}], the number of classes, got {top}")
    refuse_outside("batch_size", batch_size, least=1)
    refuse_outside("num_workers", num_workers, least=0)


class Predictor:
    """Answers for image files, one row each, in order, in constant memory.

    Args:
        network: images ``(B, 3, size, size)`` in [0, 1] to ``Output`` with the score of every detector.
        classes: names of the classes, in the order of the logits.
        detectors: names of the detectors.
        transform: maps a uint8 image ``(3, H, W)`` to ``(3, size, size)``, as in the network's evaluation.
        thresholds: the largest accepted score by detector; empty where none are known.
        top: how many classes a row names.
        batch_size: images per forward pass.
        num_workers: loader processes.
        device: where the network runs.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        classes: Sequence[str],
        detectors: Sequence[str],
        transform: Transform,
        thresholds: Mapping[str, float],
        top: int = 1,
        batch_size: int = 64,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        refuse_numbers(top=top, classes=len(classes), batch_size=batch_size, num_workers=num_workers)
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.classes, self.detectors, self.transform, self.thresholds = classes, detectors, transform, thresholds
        self.top, self.batch_size, self.num_workers = top, batch_size, num_workers

    @property
    def columns(self) -> list[str]:
        """Names of what ``Row.cells`` may hold, in the order in which it is written."""
        ranks = range(1, self.top + 1)
        return [
            "image",
            *(_ranked(column, rank) for rank in ranks for column in ("class", "probability")),
            *(f"{column}/{name}" for name in self.detectors for column in ("score", "accepted")),
            "error",
        ]

    def __call__(self, names: Iterable[str | Path], lines: Iterable[bytes] = ()) -> Iterator[Row]:
        """The rows of files and of the images in folders, while they are computed; see ``images_in``."""
        piles: Iterable[Pile] = loader(
            images_in(names, lines),
            self.transform,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for pile in piles:
            readable = [path for path, error in zip(pile.paths, pile.errors, strict=True) if error is None]
            answers = iter(self.answers(readable, pile.images) if readable else ())
            for path, error in zip(pile.paths, pile.errors, strict=True):
                yield next(answers) if error is None else Row(path, error=error)

    @torch.no_grad()
    def answers(self, paths: Sequence[str], images: Tensor) -> list[Row]:
        """The rows of a batch.

        Args:
            paths: where the images come from.
            images: ``(B, 3, size, size)`` in [0, 1].
        """
        output: Output = self.network(images.to(self.device, non_blocking=True))
        finite = output.logits.isfinite().all(1).tolist()
        probabilities, order = output.logits.softmax(1).topk(self.top)
        tops, ranks = probabilities.tolist(), order.tolist()
        scores = {name: output.scores[name].tolist() for name in self.detectors}
        rows = []
        for position, path in enumerate(paths):
            if not finite[position]:
                rows.append(Row(path, error="the network's logits are not finite"))
                continue
            named = [self.classes[rank] for rank in ranks[position]]
            found = {name: values[position] for name, values in scores.items()}
            accepted = {name: found[name] <= limit for name, limit in self.thresholds.items()}
            rows.append(Row(path, list(zip(named, tops[position], strict=True)), found, accepted))
        return rows
