"""Fitting detectors on the training split and reading their scores on the validation split."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from robustfg.attacks.gradient.feature_space import FeatureBank
from robustfg.attacks.runtime.eval_mode import attackable
from robustfg.core.errors import UserError
from robustfg.core.precision import exact_arithmetic
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.detectors import Detector, Watched, fit, threshold_at
from robustfg.evaluation.detection.contents import Contents, splits_of_files
from robustfg.evaluation.gather import gathered

KEPT = 20
"""Validation images of a class whose features a joint attack may aim at."""


@dataclass(frozen=True)
class Calibration:
    """Scores of the validation samples that are classified right, in order of their ids; the same on every process."""

    scores: dict[str, Tensor]
    """``(n,)`` float32 on the CPU, by detector."""
    label: Tensor
    """``(n,)``."""
    distances: frozenset[str]
    """Detectors whose score is minus two times the largest logit: the smallest distance of a head of distances."""
    kept: Tensor
    """``(m,)`` positions of the first samples of every class."""
    embedding: Tensor
    """``(m, D)`` of those."""
    considered: int
    """Size of the validation split, wrong ones included."""

    def __len__(self) -> int:
        return len(self.label)

    def thresholds(self, detector: str, levels: Sequence[float]) -> dict[float, float]:
        """The thresholds of a detector by false-positive rate; infinite where there are too few samples for it."""
        return {level: threshold_at(self.scores[detector], level) for level in levels}

    def bank(self, detector: str, tau: float) -> FeatureBank | None:
        """Features of real images that the detector accepts; None where those are of fewer than two classes."""
        accepted = self.scores[detector][self.kept] <= tau
        label = self.label[self.kept][accepted]
        return FeatureBank(self.embedding[accepted], label) if len(set(label.tolist())) > 1 else None


def calibrated(watched: Watched, trainer: pl.Trainer, data: DataModule, contents: Contents) -> Calibration:
    """Fits the detectors on the un-augmented training split, then reads them; every process sees its share.

    The validation split is one that no detector was fitted on, though ``best.ckpt`` was chosen by it. The images that
    were read are noted in ``contents``. Files of the training split are not decoded where no detector learns from them.
    """
    with exact_arithmetic(), attackable(watched), torch.no_grad():
        if learns(watched) or splits_of_files(data) is None:
            survey = contents.passing("train", data.survey_dataloader())
            fit(watched, there(trainer, survey), gathered)
            deque(survey, maxlen=0)  # where no detector learns, nobody has drawn them
        watched.to(trainer.strategy.root_device).eval()
        return _read(watched, there(trainer, contents.passing("val", data.val_dataloader())))


def learns(watched: Watched) -> bool:
    """Whether any detector looks at the training split."""
    return any(cast(Detector, module).fit() is not None for module in watched.detectors.values())


def there(trainer: pl.Trainer, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches on the trainer's device."""
    for batch in batches:
        there: Batch = trainer.strategy.batch_to_device(batch)
        yield there


def _read(watched: Watched, batches: Iterable[Batch]) -> Calibration:
    names, parts, considered = list(watched.detectors), [], 0
    for batch in batches:
        output = watched(batch.image)
        right = output.logits.argmax(1) == batch.label
        scores = torch.stack([output.scores[name] for name in names], 1)
        for name, score in zip(names, scores.unbind(1), strict=True):
            if not bool(score.isfinite().all()):
                raise UserError(f"detector.{name}: its score of a validation image is not finite: no threshold follows")
        near = -2 * output.logits.amax(1)
        told = (batch.index, batch.label, scores.float(), near, output.embedding.float())
        parts.append(tuple(column[right].cpu() for column in told))
        considered += len(right)
    index, label, scores, near, embedding = _joined(parts)
    some = _first(label)
    found = gathered(((index, label, scores, near), (index[some], embedding[some]), considered))
    index, label, scores, near = _joined([part for part, _, _ in found])
    of, embedding = _joined([part for _, part, _ in found])
    order, by_id = index.argsort(), of.argsort()
    index, label, scores, near = index[order], label[order], scores[order], near[order]
    place = torch.searchsorted(index, of[by_id])
    kept = _first(label[place])
    close = {name: torch.allclose(scores[:, c], near, rtol=1e-5, atol=1e-6) for c, name in enumerate(names)}
    return Calibration(
        scores={name: scores[:, column].contiguous() for column, name in enumerate(names)},
        label=label,
        distances=frozenset(name for name, same in close.items() if same),
        kept=place[kept],
        embedding=embedding[by_id][kept],
        considered=sum(count for _, _, count in found),
    )


def _first(label: Tensor) -> Tensor:
    """Positions of the first ``KEPT`` samples of every class."""
    chosen = [(label == k).nonzero().flatten()[:KEPT] for k in sorted(set(label.tolist()))]
    return torch.cat([*chosen, label.new_zeros(0)]).sort().values


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
