import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error
from toy import row

from robustfg.evaluation.calibration import calibration_of, reliability, softmax_scores
from robustfg.evaluation.records import CLEAN, table_of


def rows_of(logits, label, attack, restart=0):
    scores = softmax_scores(logits, label)
    prediction = logits.argmax(1)
    return [
        row(i, attack, restart, bool(prediction[i] == label[i]), label=int(label[i]), prediction=int(prediction[i]),
            margin=float(2 * (prediction[i] == label[i]) - 1),
            evidence={name: float(values[i]) for name, values in scores.items()})
        for i in range(len(label))
    ]  # fmt: skip


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    logits, label = 3 * torch.randn(400, 5, generator=generator), torch.randint(0, 5, (400,), generator=generator)
    return logits, torch.where(torch.rand(400, generator=generator) < 0.6, logits.argmax(1), label)


def test_clean_numbers_are_those_of_other_libraries(sample):
    logits, label = sample
    found = calibration_of(table_of(rows_of(logits, label, CLEAN)), [])["clean"]
    p = logits.double().softmax(1)
    theirs = float(multiclass_calibration_error(p, label, num_classes=5, n_bins=15))
    assert found["ece"] == pytest.approx(theirs, abs=1e-6)
    assert found["nll"] == pytest.approx(log_loss(label, p, labels=range(5)), rel=1e-6)
    one_of_each = sum(brier_score_loss(label == k, p[:, k]) for k in range(5))
    assert found["brier"] == pytest.approx(one_of_each, rel=1e-6)
    assert found["confidence"] == pytest.approx(float(p.amax(1).mean()))
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == label).double().mean()))
    assert sum(n for n, _, _ in found["reliability"]) == 400


def test_a_confidence_of_one_is_in_the_last_bin_with_its_neighbours():
    # 0.95 and 1.0 with one of two right: together |0.975 - 0.5|, apart they would count 0.95 / 2 + 0 / 2 ...
    assert reliability(np.array([0.95, 1.0]), np.array([0.0, 1.0])) == [(2, 0.975, 0.5)]
    assert reliability(np.array([0.0, 1 / 15]), np.array([1.0, 1.0])) == [(1, 0.0, 1.0), (1, 1 / 15, 1.0)]
    logits = torch.tensor([[2000.0, 0.0], [0.0, -2000.0]])
    scores = softmax_scores(logits, torch.tensor([0, 1]))
    assert scores["softmax/confidence"].tolist() == [1.0, 1.0]
    assert scores["softmax/nll"].tolist() == [0.0, 2000.0]
    assert scores["softmax/brier"].tolist() == [0.0, 2.0]


def test_attacked_numbers_are_of_the_worst_row_of_every_sample(sample):
    logits, label = sample
    logits, label = logits[:4], logits[:4].argmax(1)
    worse = logits.clone()
    worse[1, label[1]] -= 50
    stale = rows_of(worse, label, "a", 1)
    del stale[1]["evidence"]  # not attacked again: evidence is kept once
    table = table_of([*rows_of(logits, label, CLEAN), *rows_of(worse, label, "a"), *stale])
    found = calibration_of(table, ["a"])
    naive = -worse.double().log_softmax(1)[range(4), label]
    for part in (found["attacks"]["a"], found["worst_case"]):
        assert part["accuracy"] == 0.75
        assert part["nll"] == pytest.approx(float(naive.mean()))
    assert found["clean"]["accuracy"] == 1
    assert not math.isnan(found["worst_case"]["ece"])
    assert found["bins"] == 15
