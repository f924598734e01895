import numpy as np
import pytest
import torch
from toy import row

from robustfg.detectors.threshold import threshold_at
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.detection.summary import Attackers, DetectorSummary
from robustfg.evaluation.records import CLEAN, table_of


def summary_of(levels, calibration, reached, *, fpr):
    """Right samples with clean score 0; an attack reaches the wrong class with the given least score each."""
    rows = []
    for index, least in enumerate(reached):
        rows.append(row(index, CLEAN, 0, True, evidence={"score/d": 0.0}) | {"label": index % 2})
        evidence = {"score/d": 0.0, "least/d": least}
        rows.append(row(index, "a", 0, True, evidence=evidence) | {"label": index % 2})
    attackers = Attackers({"white_box": ["a"]}, {"white_box": ["a"]}, "semi_white_box", [], {"a": 1.0})
    return DetectorSummary(Readings(table_of(rows), "d"), calibration, attackers, fpr=fpr, levels=levels)


@pytest.mark.parametrize("levels", [(0.05,), (0.05, 0.3)], ids=["clamped", "told down to 30 %"])
def test_the_redrawn_interval_is_a_naive_loop_over_calibrations_and_test_samples(levels):
    """Below the lowest threshold that is told no search went on: what it reached above counts there as well."""
    calibration = np.sort(np.random.default_rng(3).normal(0.5, 0.2, 60).astype(np.float32).astype(float))
    reached = np.linspace(0.4, 1.1, 40)
    found = summary_of(levels, calibration, reached, fpr=0.05)
    lowest = min(threshold_at(torch.tensor(calibration, dtype=torch.float32), level) for level in levels)
    accuracies = []
    for sample_counts, calibration_counts in zip(found.test, found.redrawn, strict=True):
        redrawn = torch.tensor(np.repeat(calibration, calibration_counts), dtype=torch.float32)
        tau = threshold_at(redrawn, 0.05)
        robust = [tau >= 0.0 and not least <= tau and not least <= max(tau, lowest) for least in reached]
        drawn = np.repeat(np.array(robust), sample_counts)
        accuracies.append(drawn.mean())
    told = found.as_dict()["threats"]["white_box"]["joint"]["ci95_redrawn"]
    assert told == pytest.approx(np.quantile(accuracies, (0.025, 0.975)), abs=6e-5)
