"""What is saved of a broken sample stays in ball and box when it is read again, and still breaks it."""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from robustfg.attacks import L1, L2, Attack, Attempt, Frame, Linf
from robustfg.attacks.threats.l0 import L0
from robustfg.core.types import Batch, Output
from robustfg.evaluation.records import CLEAN, RecordStore
from robustfg.evaluation.rounds import measure_attack

SIGN = torch.ones(3, 6, 6)
SIGN[:, ::2, 1::2] = SIGN[:, 1::2, ::2] = -1
BORDER = torch.ones(6, 6).index_fill(0, torch.tensor([2, 3]), 0)
BORDER = torch.maximum(BORDER, BORDER.T)
FEW = torch.zeros(6, 6).index_fill(0, torch.tensor([1]), 1)


class Plane(torch.nn.Module):
    """Wrong from half the given change on."""

    def __init__(self, sign, change):
        super().__init__()
        self.sign, self.change = sign, change

    def forward(self, image):
        reached = ((image - 0.5) * self.sign).flatten(1).sum(1) / self.sign.abs().sum()
        lead = 0.5 - self.change / 2 - reached
        return Output(logits=torch.stack([lead, -lead], 1), embedding=reached[:, None])

    def anomaly(self, output):
        return output.embedding[:, 0]


@dataclass(frozen=True, kw_only=True)
class Handed(Attack):
    """Gives every sample's image, by its id."""

    found: Tensor

    def attempt(self, model, task, restart, before):
        none = torch.zeros_like(task.label)
        return Attempt(self.found[task.index], none + torch.nan, none - 1, none + 1, none, none.bool())

    def margins(self, model, image, label):
        raise NotImplementedError

    def describe(self):
        return {}


def saved(folder, model, threat, clean, found):
    """Rows of the record and, read from Parquet, the perturbations with their types."""
    batch = Batch(clean, torch.zeros(len(clean), dtype=torch.int64), torch.arange(len(clean)))
    attack = Handed(name="handed", threat=threat, found=found)
    ((rows, perturbations),) = measure_attack(model, attack, batch, model(clean).logits, keep=True)
    store = RecordStore(folder / "rows", 0, {CLEAN: "c", "handed": "h"})
    store.add(rows, perturbations)
    store.write_perturbations(folder / "perturbations", 1, store.worst_margins(1))
    kept = pq.read_table(folder / "perturbations").to_pylist()
    for entry in kept:
        delta = np.frombuffer(entry["delta"], entry["dtype"]).reshape(entry["shape"]).astype(np.float32)
        entry["change"] = torch.from_numpy(delta / np.float32(255) if entry["dtype"] == "int8" else delta)
    return rows, kept


THREATS = {
    "linf": (torch.ones(6, 6), lambda change, count: Linf(epsilon=change)),
    "l2": (torch.ones(6, 6), lambda change, count: L2(epsilon=change * count**0.5)),
    "l1": (torch.ones(6, 6), lambda change, count: L1(epsilon=change * count)),
    "l0": (FEW, lambda change, count: L0(epsilon=6)),
    "frame": (BORDER, lambda change, count: Frame(epsilon=2)),
}


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("levels", [8, 8 - 1e-5, 8 - 2e-4, 8 - 6.5e-4, 7.7, 1.9995, 0.6, 100.3, 140.2], ids=str)
def test_what_is_read_again_is_allowed_and_still_wrong(norm, levels, tmp_path):
    area, ball = THREATS[norm]
    sign, change = SIGN * area, levels / 255
    threat = ball(change, int(sign.abs().sum()))
    found = torch.where(sign == 0, 0.5, sign.clamp_min(0)).expand(2, -1, -1, -1)  # ends where the box does
    clean = (found - sign * change).clone()
    model = Plane(sign, change)
    rows, kept = saved(tmp_path, model, threat, clean, found)
    assert [entry["index"] for entry in kept] == [0, 1]
    for entry, row in zip(kept, rows, strict=True):
        image = clean[entry["index"]] + entry["change"]
        assert threat.size(entry["change"].double()[None]) <= threat.radius + 1e-6
        assert image.min() >= -1e-6
        assert image.max() <= 1 + 1e-6
        assert model(image.clamp(0, 1)[None]).logits.argmax() == 1
        assert not row["correct"]
        assert [entry[key] for key in ("attack", "restart", "margin")] == [
            row[key] for key in ("attack", "restart", "margin")
        ]


def test_the_usual_budget_is_saved_in_whole_levels_whatever_float_arithmetic_adds(tmp_path):
    clean = torch.rand(50, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    found = clean + SIGN * (8 / 255)
    assert (found - clean).abs().unique().numel() > 2
    model = torch.nn.Module()
    model.forward = lambda image: Output(logits=torch.tensor([[0.0, 1.0]]).expand(len(image), 2), embedding=image)
    model.anomaly = lambda output: output.logits[:, 0]
    batch = Batch(clean, torch.zeros(50, dtype=torch.int64), torch.arange(50))
    attack = Handed(name="handed", threat=Linf(epsilon="8/255"), found=found)
    ((_, kept),) = measure_attack(model, attack, batch, torch.tensor([[1.0, 0.0]]).expand(50, 2), keep=True)
    assert all(np.array_equal(entry.delta, (8 * SIGN).numpy().astype(np.int8)) for entry in kept)


def test_a_sample_whose_levels_do_not_fit_a_byte_changes_no_other_ones(tmp_path):
    change = torch.tensor([200.0, 100.0]).view(2, 1, 1, 1) / 255 * FEW
    clean = torch.zeros(2, 3, 6, 6)
    _, kept = saved(tmp_path, Plane(SIGN.abs() * FEW, 1.5), L0(epsilon=6), clean, clean + change)
    assert {entry["index"]: entry["dtype"] for entry in kept} == {0: "float32", 1: "int8"}
