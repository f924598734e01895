import numpy as np
import pytest
from toy import row

from robustfg.data.annotations import taxonomy_of
from robustfg.evaluation.aggregation import worst_rows
from robustfg.evaluation.records import CLEAN, column, table_of
from robustfg.evaluation.taxonomy import errors_by_taxonomy

TAXONOMY = {"genus": ("g", "g", "h", "h", "h"), "family": ("f", "f", "f", "f", "e")}


def told(index, attack, restart, label, prediction, margin):
    right = label == prediction
    return row(index, attack, restart, right, label=label, prediction=prediction, margin=margin)


def test_errors_are_counted_where_a_hand_count_finds_them():
    table = table_of(
        [
            told(1, CLEAN, 0, 0, 0, 2.0), told(1, "a", 0, 0, 1, -1.0), told(1, "a", 1, 0, 2, -3.0),  # the worse
            told(2, CLEAN, 0, 3, 4, -1.0), told(2, "a", 0, 3, 4, -1.0), told(2, "a", 1, 3, 4, -1.0),
            told(3, CLEAN, 0, 4, 4, 5.0), told(3, "a", 0, 4, 4, 1.0), told(3, "a", 1, 4, 4, 0.5),
        ]
    )  # fmt: skip
    found = errors_by_taxonomy(table, TAXONOMY, ["a"])
    assert list(found) == ["genus", "family"]
    genus, family = found["genus"], found["family"]
    clean = {key: genus[CLEAN][key] for key in ("errors", "inside", "outside", "share_inside", "expected_inside")}
    assert clean == {"errors": 1, "inside": 1, "outside": 0, "share_inside": 1.0, "expected_inside": 2 / 4}
    assert (genus["a"]["errors"], genus["a"]["inside"], genus["a"]["outside"]) == (2, 1, 1)
    assert genus["a"]["expected_inside"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert genus["a"]["held"]["correct"] == 2  # sample 1 left its genus in one restart
    assert (family["a"]["inside"], family["a"]["outside"]) == (1, 1)
    assert family["a"]["held"]["correct"] == 2  # sample 2 left its family, sample 1 never did
    assert genus["worst_case"] == genus["a"]


def test_a_check_that_breaks_a_sample_counts_in_the_worst_case_only():
    table = table_of(
        [told(1, CLEAN, 0, 0, 0, 2.0), told(1, "a", 0, 0, 0, 1.0), told(1, "check:x", 0, 0, 2, -1.0),
         told(2, CLEAN, 0, 0, 0, 2.0), told(2, "a", 0, 0, 0, 1.0)]
    )  # fmt: skip
    found = errors_by_taxonomy(table, TAXONOMY, ["a"], also=["check:x"])["genus"]
    assert found["a"]["errors"] == 0
    assert found["a"]["share_inside"] is found["a"]["expected_inside"] is None
    assert (found["worst_case"]["errors"], found["worst_case"]["outside"]) == (1, 1)


def test_errors_of_random_predictions_fall_inside_about_as_often_as_expected():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 4000)
    shift = generator.integers(1, 5, 4000)
    rows = [
        told(i, CLEAN, 0, int(y), int((y + s) % 5), -1.0) for i, (y, s) in enumerate(zip(labels, shift, strict=True))
    ]
    found = errors_by_taxonomy(table_of(rows), TAXONOMY, [])["genus"][CLEAN]
    assert found["errors"] == 4000
    assert found["share_inside"] == pytest.approx(found["expected_inside"], abs=0.03)


def test_the_worst_row_is_the_smallest_margin_and_a_wrong_one_where_margins_tie():
    table = table_of(
        [
            told(7, "a", 0, 0, 0, 0.0),
            told(7, "a", 1, 0, 1, 0.0),
            told(3, "b", 0, 0, 1, -2.0),
            told(3, "a", 0, 0, 1, -1.0),
        ]
    )
    rows = worst_rows(table, ["a", "b"])
    assert column(table, "index")[rows].tolist() == [3, 7]
    assert column(table, "margin")[rows].tolist() == [-2.0, 0.0]
    assert column(table, "correct")[rows].tolist() == [False, False]


def test_genera_are_a_taxonomy_of_one_level():
    class Plain:
        def __init__(self, genera):
            self.genera = genera

    assert taxonomy_of(Plain(("g", "h"))) == {"genus": ("g", "h")}
    assert taxonomy_of(Plain(None)) == {}
