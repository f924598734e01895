"""What the page and the terminal say of checks and of classes that are apart."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import binomtest

from robustfg.cli.provenance import repeatable
from robustfg.evaluation.checks import CURVED, TOLERATED
from robustfg.evaluation.statistics import exceeds
from robustfg.reporting.broken import lay_map
from robustfg.reporting.checks import TOLERANCE, checks_line, tolerance
from robustfg.reporting.evidence import has_keypoints, separated, titled
from robustfg.reporting.page import title_of


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


@pytest.mark.parametrize("cells", [np.zeros((2, 2)), np.full((2, 2), np.nan), -np.ones((2, 2))])
def test_a_dead_map_is_said_to_be_dead_and_hides_the_picture(cells):
    axes = Figure().subplots()
    lay_map(axes, cells, (4, 6))
    assert [text.get_text() for text in axes.texts] == ["map is\ndead"]
    assert axes.images[0].get_alpha() is None
    alive = Figure().subplots()
    lay_map(alive, np.eye(2), (4, 6))
    assert not alive.texts


def test_the_title_names_weights_and_suite():
    told = {"data": "birds", "loss": "gm", "run": "r", "attacks": {"fgsm": {}, "pgd": {}}}
    assert title_of(told) == "birds, gm: robustness of run r under attack=fgsm, pgd"
    told |= {"checkpoint": "outputs/a/best.ckpt", "suite": "quick"}
    assert title_of(told) == "birds, gm: robustness of outputs/a/best.ckpt under attack=quick"


def test_a_command_is_recorded_as_it_can_be_repeated():
    assert repeatable(["/home/me/robustfg/train.py", "loss=gm"]) == ["python", "-m", "robustfg.train", "loss=gm"]
    for other in ([], ["/usr/bin/own-script", "a=1"], ["/home/me/study/train.py"]):
        assert repeatable(other) == other


def test_keypoints_and_short_names_of_maps_are_explained_where_they_are():
    assert titled("cam") == "'cam' (class-activation map)"
    assert titled("attention") == "'attention'"
    assert has_keypoints({"attention": {"cam": {"clean": {"n": 3, "keypoints": {}}}}})
    assert not has_keypoints({"attention": {"cam": {"clean": {"n": 3, "parts": {}}}}})
