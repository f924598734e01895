"""An attack on a batch, round by round and a portion of the samples at a time, so that little is lost when it ends."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfg.attacks import Attack, Attempt
from robustfg.attacks.batch.task import Task
from robustfg.attacks.runtime.eval_mode import Model
from robustfg.core.types import Batch
from robustfg.evaluation.measure import EXACT, LEAST, Classify, measure_clean, rows_of, verdicts
from robustfg.evaluation.pace import Pace
from robustfg.evaluation.records import Perturbation
from robustfg.evaluation.regions import Regions

Row = dict[str, Any]
Known = Mapping[tuple[int, int], Row]
"""Rows by restart and sample."""
Found = tuple[list[Row], list[Perturbation]]

FLOAT_NOISE = 1e-4
"""Grey levels by which the difference of two float32 images may miss a whole one; less than 1e-6 of the box."""


def measure_attack(
    model: Classify,
    attack: Attack,
    batch: Batch,
    clean_logits: Tensor,
    *,
    keep: bool,
    regions: Regions | None = None,
    attacked: Model | None = None,
    detector: str | None = None,
    pace: Pace | None = None,
    known: Known | None = None,
) -> Iterator[Found]:
    """Attacks the samples that are right when clean; the others are recorded as broken by the clean image itself.

    Args:
        model: tells what is recorded.
        attack: by what it is attacked.
        batch: the samples.
        clean_logits: ``(B, K)``.
        keep: whether to return perturbations.
        regions: where to look for the evidence of the samples; it is recorded where an image was found anew.
        attacked: what the attack is run on; None: ``model``.
        detector: whose score the attack watches, where it does.
        pace: how many samples are attacked together; None: all.
        known: rows of these samples that an interrupted evaluation has written, which are not measured again.

    Yields:
        Rows of samples and rounds, and perturbations of the samples that the attack broke there: each time what must be
        written together.
    """
    pace, known = pace or Pace(), known or {}
    correct = clean_logits.argmax(1) == batch.label
    idle = _unattacked(model, attack, _select(batch, ~correct))
    right = _select(batch, correct)
    ids: list[int] = right.index.tolist()
    task = Task.of(right.image, right.label, right.index, draw=0, logits=clean_logits[correct]) if ids else None
    where = None if regions is None else regions[correct]
    last: list[Row] = [{} for _ in ids]
    for restart in range(attack.rounds if ids else 0):
        standing = [place for place, row in enumerate(last) if not _won(row)]
        for place in set(range(len(ids))) - set(standing):
            last[place] = known.get((restart, ids[place])) or _untouched(last[place], restart)
            idle.append(last[place])
        size = pace.portion(attack, restart)
        for begin in range(0, len(standing), size):
            portion = standing[begin : begin + size]
            for place in portion:
                if (restart, ids[place]) in known:
                    last[place] = known[restart, ids[place]]
            todo = [place for place in portion if (restart, ids[place]) not in known]
            if not todo:
                continue
            assert task is not None
            began, rows = time.perf_counter(), torch.tensor(todo, device=right.label.device)
            before = _before(task.part(rows), [last[place] for place in todo]) if restart else None
            attempt = attack.attempt(attacked or model, task.part(rows), restart, before)
            part = Batch(right.image[rows], right.label[rows], right.index[rows])
            looked = None if where is None else where[rows]
            found, broken = _recorded(
                model, attack, attempt, part, restart, [last[place] for place in todo], looked, detector, keep, began
            )
            for place, row in zip(todo, found, strict=True):
                last[place] = row
            yield [*_new(idle, known), *found], broken
            idle = []
    if fresh := _new(idle, known):
        yield fresh, []


def _unattacked(model: Classify, attack: Attack, wrong: Batch) -> list[Row]:
    if not len(wrong.label):
        return []
    rows, _ = measure_clean(model, wrong)
    free = {"attack": attack.name, "forwards": 0}
    return [row | free | {"restart": restart} for restart in range(attack.rounds) for row in rows]


def _new(rows: Sequence[Row], known: Known) -> list[Row]:
    return [row for row in rows if (row["restart"], row["index"]) not in known]


def _won(row: Row) -> bool:
    """Whether the search has said so; a margin that it did not look at is NaN."""
    return bool(row) and row["state"][0] < 0


def _untouched(row: Row, restart: int) -> Row:
    """The row of a sample that a round has not attacked: it stands where it was, at no cost."""
    exact = {name: value for name, value in row.get("evidence", {}).items() if name.startswith(EXACT)}
    rest = {name: value for name, value in row.items() if name != "evidence"}
    cost = {"forwards": 0, "backwards": 0, "dead_gradient": False, "seconds": 0.0}
    return rest | cost | {"restart": restart} | ({"evidence": exact} if exact else {})


def _before(task: Task, rows: Sequence[Row]) -> Attempt:
    """Where samples stood, from their rows. No attack reads the image that a sample had before: the clean one does."""
    wide = torch.promote_types(task.image.dtype, torch.float32)
    margin, first, least = zip(*(row["state"] for row in rows), strict=True)
    none = torch.zeros_like(task.label)
    return Attempt(
        task.image,
        task.image.new_tensor(margin, dtype=wide),
        task.label.new_tensor(first),
        none,
        none,
        none.bool(),
        least=None if least[0] is None else task.image.new_tensor(least, dtype=wide),
    )


def _recorded(
    model: Classify, attack: Attack, attempt: Attempt, batch: Batch, restart: int, last: Sequence[Row],
    regions: Regions | None, detector: str | None, keep: bool, began: float,
) -> Found:  # fmt: skip
    """Rows of one round on some samples, and the perturbations of those that it broke."""
    asked = attempt.forwards > 0
    told = asked if restart else torch.ones_like(asked)  # the first row of a sample says where it stands in any case
    broken: list[Perturbation] = []
    rows: list[Row] = []
    if bool(told.any()):
        part, image = _select(batch, told), attempt.image[told]
        found = verdicts(model, image, part.label, None if regions is None else regions[told])
        first, forwards = attempt.first_success[told], attempt.forwards[told]
        unseen = ~found["correct"] & (first < 0)  # the last iterate, which the search did not look at
        least = None if attempt.least is None else attempt.least[told]
        columns = found | {
            "norm": attack.threat.size(image.double() - part.image.double()),
            "first_success": torch.where(unseen, forwards, first),
            "forwards": forwards,
            "backwards": attempt.backwards[told],
            "dead_gradient": attempt.dead_gradient[told],
            **({LEAST + detector: least} if detector is not None and least is not None else {}),
        }
        rows = rows_of(attack.name, restart, part, columns, time.perf_counter() - began)
        if keep:
            wrong = (asked[told] & ~found["correct"]).nonzero().flatten()
            broken = _perturbations(model, attack, restart, part, image, found["margin"], wrong)
    fresh = iter(rows)
    rows = [next(fresh) if new else _untouched(row, restart) for new, row in zip(told.tolist(), last, strict=True)]
    nothing = [None] * len(rows)
    states = zip(
        attempt.margin.tolist(), attempt.first_success.tolist(),
        nothing if attempt.least is None else attempt.least.tolist(), strict=True,
    )  # fmt: skip
    return [row | {"state": list(state)} for row, state in zip(rows, states, strict=True)], broken


def _perturbations(
    model: Classify, attack: Attack, restart: int, batch: Batch, image: Tensor, margin: Tensor, broken: Tensor
) -> list[Perturbation]:
    """In whole grey levels, rounded towards zero, where that still fools the model and keeps to the ball."""
    if not len(broken):
        return []
    clean, delta = batch.image[broken], (image - batch.image)[broken]
    levels = delta.sign() * (delta.abs() * 255 + FLOAT_NOISE).floor()
    small = (levels.abs() <= 127).flatten(1).all(1)
    allowed = attack.threat.size(levels.double() / 255) <= attack.threat.radius + 1e-6
    fools = ~verdicts(model, (clean + levels / 255).clamp(0, 1), batch.label[broken])["correct"]
    survives = small & allowed & fools
    return [
        Perturbation(
            int(batch.index[sample]), attack.name, restart, float(margin[sample]),
            (levels[i].to(torch.int8) if survives[i] else delta[i]).cpu().numpy(),
        )
        for i, sample in enumerate(broken.tolist())
    ]  # fmt: skip


def _select(batch: Batch, mask: Tensor) -> Batch:
    return Batch(batch.image[mask], batch.label[mask], batch.index[mask])
