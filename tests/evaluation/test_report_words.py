"""What the page and the terminal say of checks and of classes that are apart."""

import pytest
from scipy.stats import binomtest

from robustfg.evaluation.checks import CURVED, TOLERATED
from robustfg.evaluation.statistics import exceeds
from robustfg.reporting.checks import TOLERANCE, checks_line, tolerance
from robustfg.reporting.evidence import separated


def check(name, count, status="pass", n=128):
    return {"name": name, "count": count, "n": n, "status": status, "detail": ""}


def test_a_count_against_a_check_that_passed_says_what_is_tolerated():
    checks = [check("reference", 1), check("one_step", 0), check("unbounded", 9, "fail"), check("realised_fpr", 7)]
    assert tolerance(checks) == f"Against checks that passed: reference 1 of 128. {TOLERANCE}"
    assert tolerance([check("one_step", 0)]) == tolerance([]) == ""
    assert checks_line(checks) == "3 of 4 checks passed; unbounded fail."


def test_the_tolerance_told_is_the_one_that_judges():
    rates = f"{100 * TOLERATED:g} % ({100 * CURVED:g} % for finite_difference; one-sided binomial test at 5 %)"
    assert rates in TOLERANCE
    for count in range(6):
        told = binomtest(count, 128, 0.01, alternative="greater").pvalue < 0.05
        assert exceeds(count, 128, TOLERATED) == told


@pytest.mark.parametrize(("n", "left_out"), [(3, True), (4, False)])
def test_classes_that_cannot_be_looked_at_are_counted(n, left_out):
    told = separated({"separated": 2, "n": n, "classes": dict.fromkeys("abcd")})
    assert told.startswith(f"2 of {n} classes are apart from all others")
    assert "More samples make that stricter." in told
    assert ("1 left out" in told) == left_out


def test_no_class_is_said_to_be_apart_where_none_can_be_looked_at():
    assert "0 of 0" not in separated({"separated": 0, "n": 0, "classes": dict.fromkeys("abc")})
