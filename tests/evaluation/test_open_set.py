import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from robustfg.evaluation.open_set import accepted_at, below, ranking


@pytest.fixture(params=["continuous", "tied", "infinite"])
def scores(request):
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(size=83), generator.normal(1.0, 1.5, size=61)
    if request.param == "tied":
        known, unknown = known.round(), unknown.round()
    if request.param == "infinite":
        known[:2], unknown[:9] = np.inf, np.inf
    return known, generator.random(83) < 0.7, unknown


def test_auroc_is_sklearns(scores):
    known, correct, unknown = scores
    ranks = np.unique(np.concatenate([known, unknown]), return_inverse=True)[1]
    truth = np.repeat([0, 1], [83, 61])
    assert ranking(known, correct, unknown)["auroc"] == pytest.approx(roc_auc_score(truth, ranks))


def test_both_conventions_of_the_rate_at_95_percent_are_those_of_sklearns_curve(scores):
    known, correct, unknown = scores
    ranks = np.unique(np.concatenate([known, unknown]), return_inverse=True)[1]
    for name, truth, rising in (
        ("known_rejected_at_95_unknown_rejected", np.repeat([0, 1], [83, 61]), ranks),
        ("unknown_accepted_at_95_known_accepted", np.repeat([1, 0], [83, 61]), -ranks),
    ):
        false, true, _ = roc_curve(truth, rising, drop_intermediate=False)
        assert ranking(known, correct, unknown)[name] == pytest.approx(false[true >= 0.95 - 1e-12][0]), name


def test_oscr_is_the_area_under_its_curve_walked_threshold_by_threshold(scores):
    known, correct, unknown = scores
    found = [(0.0, 0.0)]
    for tau in sorted({*known, *unknown}):
        right = sum(1 for s, c in zip(known, correct, strict=True) if s <= tau and c) / len(known)
        found.append((sum(1 for s in unknown if s <= tau) / len(unknown), right))
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(found))
    told = ranking(known, correct, unknown)
    assert told["oscr"] == pytest.approx(area)
    assert told["oscr"] < min(told["auroc"], correct.mean())
    assert ranking(known, np.ones(83, bool), unknown)["oscr"] == pytest.approx(told["auroc"])


def test_exact_small_numbers():
    assert below(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])).tolist() == [1.0, 0.75, 0.5]
    twenty = np.arange(20.0)  # 95 % of them are 19
    told = ranking(twenty, twenty > 0, twenty)
    assert told["unknown_accepted_at_95_known_accepted"] == 0.95
    assert told["known_rejected_at_95_unknown_rejected"] == 0.95
    assert told["auroc"] == 0.5


def test_shares_at_thresholds_are_counted_with_equality_accepted():
    known, correct, unknown = np.array([0.0, 1.0, 2.0, 3.0]), np.array([True, False, True, True]), np.array([1.0, 2.5])
    found = accepted_at(known, correct, unknown, {0.25: 2.0, 0.0001: math.inf, 0.75: 0.0})
    assert [part["alpha"] for part in found] == [0.0001, 0.25, 0.75]
    assert [part["tau"] for part in found] == [None, 2.0, 0.0]
    assert [part["unknown_accepted"]["count"] for part in found] == [2, 1, 0]
    assert [part["known_accepted"]["count"] for part in found] == [4, 3, 1]
    assert [part["known_accepted_and_right"]["share"] for part in found] == [0.75, 0.5, 0.25]
    assert found[1]["unknown_accepted"]["n"] == 2
    assert found[1]["unknown_accepted"]["ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-3)
