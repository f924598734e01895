import json

import pytest
from rich.console import Console

from robustfg.reporting import print_summary
from robustfg.reporting.detection import claims, detection_rows, error_rows, joint_curves, rate_rows


def joint(correct, n=100, **extra):
    return {"correct": correct, "n": n, "accuracy": correct / n, "ci95": [0.1, 0.4], "accepted": 90, **extra}


def threat(correct, auroc):
    ranked = {"auroc": {"value": auroc, "ci95": [0.5, 0.9]}}
    error = {"errors": 3, "n": 4, "error": 0.75, "tau": 1.0}
    return {
        "joint": joint(correct), "curve": [joint(5, fpr=0.0), joint(correct, fpr=0.05)],
        "ranking": dict.fromkeys(("successful", "all", "worst_case"), ranked),
        "thresholded_error": {"ccat": error, "mcat_code": error | {"n": 100, "error": 0.03}},
    }  # fmt: skip


@pytest.fixture
def summary():
    detector = {
        "tau": 1.5, "verdict": "verified",
        "fpr": {"asked": 0.05, "realised": 0.06, "rejected": 6, "n": 100, "expected95": [0.01, 0.11]},
        "threats": {"semi_white_box": threat(80, 0.93), "white_box": threat(20, 0.6)},
        "forced_rejection": {"rejected": 1, "n": 2, "share": 0.5, "aimed": False},
    }  # fmt: skip
    ignorant = detector | {"threats": {"semi_white_box": threat(80, None)}, "verdict": "no claim"}
    threat_model = {"norm": "linf", "epsilon": "8/255", "left_out": []}
    return {"detection": {"fpr": 0.05, "threat": threat_model, "detectors": {"energy": detector, "knn": ignorant}}}


def test_rows_show_auroc_beside_joint_accuracy_for_every_attacker(summary):
    rows = detection_rows(summary)
    assert [row[:2] for row in rows] == [
        ("energy", "semi-white box: detector ignored"), ("energy", "white box: knows both"),
        ("knn", "semi-white box: detector ignored"),
    ]  # fmt: skip
    assert rows[0][2:] == ("0.930 [0.50, 0.90]", "0.930 [0.50, 0.90]", "80.0 % [10.0, 40.0]", "80 / 100")
    assert rows[2][2] == "–"


def test_only_the_white_box_makes_a_claim(summary):
    told, nothing = claims(summary)
    assert "20.0 %" in told
    assert "energy: within linf 8/255, rejecting 5.0 % of clean images" in told
    assert "80.0 %" not in told
    assert "without the detector at most 5.0 %" in told
    assert nothing == "knn: nothing is claimed, since no white-box attack was run."


def test_attacks_outside_the_claimed_ball_are_named(summary):
    summary["detection"]["threat"]["left_out"] = ["pgd_l2", "patch"]
    assert claims(summary)[-1] == "Not counted here, since they leave that ball: pgd_l2, patch."


def test_rates_and_errors_tell_both_definitions_and_who_aimed(summary):
    assert rate_rows(summary)[0] == (
        "energy",
        "1.5",
        "5.0 %",
        "6.0 % (6 / 100)",
        "1.0 to 11.0 %",
        "50.0 %, not aimed at",
    )
    assert error_rows(summary)[1][2:] == ("75.0 % (3 / 4)", "3.0 % (3 / 100)")


def test_the_figure_is_one_curve_an_attacker_and_absent_without_detectors(summary):
    assert joint_curves(summary).startswith("data:image/svg+xml;base64,")
    assert joint_curves({}) is None


def test_the_terminal_and_the_page_show_a_real_run(classifier, tmp_path):
    from toy import data_module, evaluate

    from robustfg.detectors import Energy
    from robustfg.evaluation.detection import Detection
    from robustfg.reporting import write_page

    chosen = Detection(detectors={"energy": Energy()}, nodes={"energy": {}}, fpr=0.1, steps=2, queries=5, grid=(0.2,))
    evaluate(classifier, tmp_path, data=data_module(max_test_samples=20), checks=5, detection=chosen)
    page = write_page(tmp_path).read_text()
    assert "<h2>Detection</h2>" in page
    assert "white box: knows both" in page
    console = Console(record=True, width=140)
    print_summary(json.loads((tmp_path / "robustness/summary.json").read_text()), tmp_path, console)
    text = console.export_text()
    assert "Detectors at a false-positive rate of 10 %" in text
    assert "Verdict" in text.split("energy:")[1]
