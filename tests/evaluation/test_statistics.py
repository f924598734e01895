import math

import pytest

from robustfg.evaluation.statistics import counted, exceeds, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (3, 10), (371, 400), (10, 10)])
def test_wilson_interval_equals_its_closed_form(correct, n):
    z, p = 1.959963984540054, correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson(correct, n)
    assert low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1, centre + half), abs=1e-9)


def test_counts_stand_beside_the_rate():
    assert counted(371, 400) == {"correct": 371, "n": 400, "accuracy": 0.9275, "ci95": [0.8978, 0.9490]}


def test_nothing_counted_gives_no_rate():
    assert counted(0, 0) == {"correct": 0, "n": 0, "accuracy": None, "ci95": [0.0, 1.0]}


def test_excess_is_tested_and_not_compared():
    # P(X >= 2 | n 64, rate 0.01) = 0.135 and P(X >= 3) = 0.026
    assert not exceeds(2, 64, 0.01)
    assert exceeds(3, 64, 0.01)
    assert not exceeds(0, 0, 0.01)
