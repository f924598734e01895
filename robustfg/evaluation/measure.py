"""Evaluating one batch: predictions in fp32, and the rows that record them."""

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output, decision_margin
from robustfg.evaluation.calibration import softmax_scores
from robustfg.evaluation.localisation import localise, sizes
from robustfg.evaluation.records import CLEAN
from robustfg.evaluation.regions import Regions

SCORE, LEAST = "score/", "least/"
"""With a detector's name behind: its score of an image, and the least score seen at a wrong prediction of a sample."""
EXACT = (SCORE, LEAST)
"""Beginnings of the names of numbers that are kept to the last bit, in every row."""
BORDERLINE = 1e-4  # a smaller margin may flip with the batch size: such samples are decided alone


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
    for name, score in output.scores.items():
        if bool(score.isnan().any()):
            raise UserError(f"detector.{name}: its score of an image is NaN, which no threshold accepts or rejects")
    found = {
        "logits": output.logits.clone(),  # the model may answer in one buffer every time
        "embedding": output.embedding.clone(),
        "prediction": output.logits.argmax(1),
        "margin": decision_margin(output.logits, label),
        "anomaly": model.anomaly(output),
        **softmax_scores(output.logits, label),
        **{SCORE + name: score.clone() for name, score in output.scores.items()},
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
    return rows_of(CLEAN, 0, batch, found | extra, time.perf_counter() - began), found


def rows_of(
    attack: str, restart: int, batch: Batch, columns: Mapping[str, Tensor], seconds: float
) -> list[dict[str, Any]]:
    """One row a sample; numbers named ``map/measure`` are its evidence, kept where they are known.

    What detectors say is evidence, too, but kept to the last bit: thresholds are compared with it.
    """
    everything = {"index": batch.index, "label": batch.label, **columns}
    lists = {name: values.tolist() for name, values in everything.items() if name not in ("logits", "embedding")}
    shared = {"attack": attack, "restart": restart, "seconds": seconds / len(batch.label)}
    rows = []
    for values in zip(*lists.values(), strict=True):
        row = dict(zip(lists, values, strict=True))
        told = {name: row.pop(name) for name in lists if "/" in name}
        found = {name: value if name.startswith(EXACT) else round(value, 6) for name, value in told.items()}
        known = {name: value for name, value in found.items() if not math.isnan(value)}
        rows.append(row | shared | ({"evidence": known} if known else {}))
    return rows
