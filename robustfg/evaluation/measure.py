"""Evaluating one batch: predictions in fp32, attacks, and the rows that record them."""

import math
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from robustfg.attacks import Attack, Attempt
from robustfg.attacks.freeze import Model
from robustfg.errors import UserError
from robustfg.evaluation.calibration import softmax_scores
from robustfg.evaluation.localisation import localise, sizes
from robustfg.evaluation.records import CLEAN, Perturbation
from robustfg.evaluation.regions import Regions
from robustfg.types import Batch, Output, decision_margin

SCORE, LEAST = "score/", "least/"
"""With a detector's name behind: its score of an image, and the least score seen at a wrong prediction of a sample."""
BORDERLINE = 1e-4  # a smaller margin may flip with the batch size: such samples are decided alone

FLOAT_NOISE = 1e-4
"""Grey levels by which the difference of two float32 images may miss a whole one; less than 1e-6 of the box."""


def borderline(scale: Tensor) -> Tensor:
    """Margin under which float32 does not decide: 1e-4, or as much of the largest logit where that is over 1."""
    return BORDERLINE * scale.clamp_min(1)


class Classify(Protocol):
    """What is evaluated: a module that classifies, scores abnormality and tells where its evidence lies."""

    def __call__(self, image: Tensor) -> Output: ...

    def explain(self, image: Tensor) -> tuple[Output, dict[str, Tensor]]: ...

    def anomaly(self, output: Output) -> Tensor: ...


@torch.no_grad()
def verdicts(model: Classify, image: Tensor, label: Tensor, regions: Regions | None = None) -> dict[str, Tensor]:
    """Everything that is told of every sample; borderline ones are decided alone.

    Logits, embedding, prediction, correctness, margin, anomaly, ``softmax_scores``, the scores of detectors where they
    watch, and with ``regions`` the numbers of ``localise``.
    """
    own = image.clone()  # which a model may write over
    output, maps = model.explain(own) if regions is not None else (model(own), {})
    logits = output.logits
    if not bool(((logits < torch.inf).all(1) & (logits > -torch.inf).any(1)).all()):  # -inf: a class left out
        raise UserError(
            "the model's outputs are not finite, so no accuracy can be told: the weights are damaged, or there are "
            "images, such as an attack's, that the model has no answer to"
        )
    found = {
        "logits": output.logits,
        "embedding": output.embedding,
        "prediction": output.logits.argmax(1),
        "margin": decision_margin(output.logits, label),
        "anomaly": model.anomaly(output),
        **softmax_scores(output.logits, label),
        **{SCORE + name: score for name, score in output.scores.items()},
        **(localise(maps, regions) if regions is not None else {}),
    }
    near = found["margin"].abs() < borderline(logits.masked_fill(logits.isinf(), 0).abs().amax(1))
    for sample in near.nonzero().flatten().tolist() if len(label) > 1 else ():
        one = slice(sample, sample + 1)
        alone = verdicts(model, image[one], label[one], None if regions is None else regions[one])
        for name in found:
            found[name][sample] = alone[name][0]
    return found | {"correct": found["prediction"] == label, "borderline": near}


def measure_clean(
    model: Classify, batch: Batch, regions: Regions | None = None
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Rows of the unattacked predictions, and the verdicts they come from."""
    began = time.perf_counter()
    found = verdicts(model, batch.image, batch.label, regions)
    zeros = torch.zeros_like(batch.label)
    extra = {
        "norm": zeros.double(),
        "first_success": torch.where(found["correct"], -1, 0),
        "forwards": zeros + 1,
        "backwards": zeros,
        "dead_gradient": zeros.bool(),
        **(sizes(regions) if regions is not None else {}),
    }
    return _rows(CLEAN, 0, batch, found | extra, time.perf_counter() - began), found


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
) -> tuple[list[dict[str, Any]], list[Perturbation]]:
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

    Returns:
        Rows of every sample and round, and perturbations of the samples this attack broke.
    """
    correct = clean_logits.argmax(1) == batch.label
    wrong, right = _select(batch, ~correct), _select(batch, correct)
    rows: list[dict[str, Any]] = []
    perturbations: list[Perturbation] = []
    if len(wrong.label):
        unattacked, _ = measure_clean(model, wrong)
        free = {"attack": attack.name, "forwards": 0}
        rows += [row | free | {"restart": restart} for restart in range(attack.rounds) for row in unattacked]
    if not len(right.label):
        return rows, perturbations
    regions = None if regions is None else regions[correct]
    began, found = time.perf_counter(), None
    attempts = attack.attempts(attacked or model, right.image, right.label, right.index, logits=clean_logits[correct])
    for restart, attempt in enumerate(attempts):
        spent = attempt.forwards > 0
        found = _judged(model, attempt.image, right.label, regions, spent, found)
        new = spent if restart else torch.ones_like(spent)
        told = _told(attack, attempt, right, found, detector)
        rows += _rows(attack.name, restart, right, told, time.perf_counter() - began, new)
        if keep:
            broken = (spent & ~found["correct"]).nonzero().flatten()
            perturbations += _perturbations(model, attack, restart, right, attempt.image, found["margin"], broken)
        began = time.perf_counter()
    return rows, perturbations


def _judged(
    model: Classify,
    image: Tensor,
    label: Tensor,
    regions: Regions | None,
    spent: Tensor,
    before: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Verdicts on the images of one round; those of samples that were not attacked again stand."""
    if before is None:
        return verdicts(model, image, label, regions)
    if bool(spent.any()):
        new = verdicts(model, image[spent], label[spent], None if regions is None else regions[spent])
        before = {name: values.clone() for name, values in before.items()}
        for name, values in new.items():
            before[name][spent] = values
    return before


def _told(
    attack: Attack, attempt: Attempt, batch: Batch, found: dict[str, Tensor], detector: str | None
) -> dict[str, Tensor]:
    unseen = ~found["correct"] & (attempt.first_success < 0)  # the last iterate, which the search did not look at
    return found | {
        "norm": attack.threat.size(attempt.image.double() - batch.image.double()),
        "first_success": torch.where(unseen, attempt.forwards, attempt.first_success),
        "forwards": attempt.forwards,
        "backwards": attempt.backwards,
        "dead_gradient": attempt.dead_gradient,
        **({LEAST + detector: attempt.least} if detector is not None and attempt.least is not None else {}),
    }


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


def _rows(
    attack: str, restart: int, batch: Batch, columns: dict[str, Tensor], seconds: float, new: Tensor | None = None
) -> list[dict[str, Any]]:
    """One row a sample; numbers named ``map/measure`` are its evidence, kept where they are ``new`` and known.

    What detectors say is evidence, too, but kept in every row and to the last bit: thresholds are compared with it.
    """
    everything = {"index": batch.index, "label": batch.label} | columns
    lists = {name: values.tolist() for name, values in everything.items() if name not in ("logits", "embedding")}
    shared = {"attack": attack, "restart": restart, "seconds": seconds / len(batch.label)}
    kept = [True] * len(batch.label) if new is None else new.tolist()
    rows = []
    for values, fresh in zip(zip(*lists.values(), strict=True), kept, strict=True):
        row = dict(zip(lists, values, strict=True))
        told = {name: row.pop(name) for name in lists if "/" in name}
        exact = {name: value for name, value in told.items() if name.startswith((SCORE, LEAST))}
        found = {name: round(value, 6) for name, value in told.items() if name not in exact} if fresh else {}
        known = {name: value for name, value in (found | exact).items() if not math.isnan(value)}
        rows.append(row | shared | ({"evidence": known} if known else {}))
    return rows


def _select(batch: Batch, mask: Tensor) -> Batch:
    return Batch(batch.image[mask], batch.label[mask], batch.index[mask])
