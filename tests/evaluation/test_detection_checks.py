import numpy as np
import pytest
import torch
from toy import row

from robustfg.attacks import Linf
from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.evaluation.checks import Check
from robustfg.evaluation.detection.checks import (
    NO_CLAIM,
    adaptive_dominates,
    detector_graph,
    detector_hygiene,
    detector_verdict,
    effort,
    half_epsilon,
    joint_reference,
    realised_fpr,
    united,
)
from robustfg.evaluation.detection.denial import RightAndRejected
from robustfg.evaluation.detection.half_epsilon import best_known
from robustfg.evaluation.detection.probes import DIFFERENCE, GRADIENT
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.records import CLEAN, table_of


def readings(missed, n=60):
    """Samples of which the weaker attack passes with the first ``missed`` ones and the white box with the next ten."""
    rows = []
    for index in range(n):
        rows.append(row(index, CLEAN, 0, True, evidence={"score/d": 0.0}))
        rows.append(row(index, "weak", 0, index >= missed, evidence={"score/d": 0.5}))
        fooled = missed <= index < missed + 10
        rows.append(row(index, "white", 0, not fooled, evidence={"score/d": 0.5, "least/d": 0.5 if fooled else np.inf}))
    return Readings(table_of(rows), "d")


def test_a_white_box_that_misses_what_the_weaker_find_does_not_dominate():
    found = adaptive_dominates(readings(8), ["white"], ["weak"], tau=1.0)
    assert (found.status, found.count, found.n) == ("fail", 8, 60)
    assert adaptive_dominates(readings(0), ["white"], ["weak"], tau=1.0).status == "pass"
    assert adaptive_dominates(readings(8), ["white"], ["weak"], tau=0.4).status == "pass", "they were rejected"
    assert adaptive_dominates(readings(8), [], ["weak"], tau=1.0).status == "inconclusive"


def probed(missed, n=80):
    """Samples that the suite leaves but for the last ten; the reference is tried on the first half."""
    rows = []
    for index in range(n):
        rows.append(row(index, CLEAN, 0, True, evidence={"score/d": 0.0}))
        fooled = index >= n - 10
        rows.append(row(index, "white", 0, not fooled, evidence={"score/d": 0.5, "least/d": 0.5 if fooled else np.inf}))
        if index < n // 2:
            least = 0.5 if index < missed else np.inf
            rows.append(row(index, "reference", 0, index >= missed, evidence={"score/d": 0.5, "least/d": least}))
    return Readings(table_of(rows), "d")


def test_a_reference_that_passes_where_all_others_failed_is_told_among_the_probed_samples():
    found = joint_reference(probed(4), ["white"], ["reference"], tau=1.0)
    assert (found.status, found.count, found.n) == ("fail", 4, 40)
    assert joint_reference(probed(0), ["white"], ["reference"], tau=1.0).status == "pass"
    assert joint_reference(probed(4), ["white"], ["reference"], tau=0.4).status == "pass", "they were rejected"
    assert joint_reference(probed(4), ["white", "reference"], ["reference"], tau=1.0).status == "pass"
    assert joint_reference(probed(4), ["white"], [], tau=1.0).status == "inconclusive"


def test_images_in_two_splits_are_found_whichever_they_are():
    clean = {"train": {0: b"a", 1: b"b"}, "val": {2: b"c"}, "test": {0: b"d"}}
    keys = {split: {index: f"{split}/{index}.png" for index in range(9)} for split in clean}
    assert detector_hygiene(clean, keys).status == "pass"
    twice = clean | {"test": {0: b"d", 1: b"d"}}
    assert detector_hygiene(twice, keys).status == "pass", "twice in one split is no leak"
    for split, image, first in (("val", b"a", "train/0"), ("test", b"b", "train/1"), ("test", b"c", "val/2")):
        found = detector_hygiene(clean | {split: clean[split] | {5: image, 6: image}}, keys)
        assert (found.status, found.count, found.n) == ("fail", 1, 4)
        assert f"{first}.png ({first.partition('/')[0]}) and {split}/5.png ({split})" in found.detail


def test_a_few_pictures_that_a_data_set_holds_twice_are_told_and_tolerated():
    splits = {split: {i: f"{split}{i}".encode() for i in range(400)} for split in ("train", "val", "test")}
    keys = {split: {i: f"{split}/{i}.png" for i in range(400)} for split in splits}
    for leaked, status in ((2, "pass"), (20, "fail")):
        test = splits["test"] | {i: splits["train"][i] for i in range(leaked)}
        found = detector_hygiene(splits | {"test": test}, keys)
        assert (found.status, found.count) == (status, leaked)
        assert "but train/0.png (train) and test/0.png (test)" in found.detail


def test_copies_of_two_training_pictures_are_a_leak_however_few_they_differ():
    splits = {
        "train": {i: b"%d" % i for i in range(400)},
        "val": {0: b"v"},
        "test": {i: b"%d" % (i % 2) for i in range(300)},
    }
    found = detector_hygiene(splits, {split: {i: f"{split}/{i}.png" for i in range(400)} for split in splits})
    assert (found.status, found.count) == ("fail", 2)


def test_a_name_in_two_splits_and_a_split_without_images_are_never_apart():
    splits = {"train": {0: b"a"}, "val": {0: b"b"}, "test": {0: b"c"}}
    keys = {"train": {0: "a.png"}, "val": {0: "b.png"}, "test": {0: "c.png"}}
    assert detector_hygiene(splits, keys).status == "pass"
    assert detector_hygiene(splits, keys | {"test": {0: "a.png"}}).status == "inconclusive"
    assert detector_hygiene(splits | {"test": {}}, keys).status == "inconclusive"
    assert detector_hygiene({}, {}).status == "inconclusive"


@pytest.mark.parametrize(("rejected", "status"), [(0, "fail"), (10, "pass"), (60, "fail")])
def test_a_false_positive_rate_far_from_the_calibrated_one_is_found(rejected, status):
    clean = np.r_[np.full(rejected, 2.0), np.zeros(200 - rejected)]
    calibration = np.r_[np.linspace(1.1, 2, 10), np.zeros(189)]
    found = realised_fpr(clean, 1.0, calibration, 0.05)
    assert (found.status, found.count, found.n) == (status, rejected, 200)
    assert realised_fpr(clean, np.inf, np.zeros(5), 0.05).status == "inconclusive"


def test_tied_scores_may_reject_fewer_but_not_more():
    ones = np.ones(199)
    assert realised_fpr(ones, 1.0, ones, 0.05).status == "pass"
    assert realised_fpr(ones + 1, 1.0, ones, 0.05).status == "fail"


def test_a_claim_above_what_is_known_at_half_the_radius_is_not_believed():
    assert half_epsilon(0.61, 0.60, 100).status == "fail"
    assert half_epsilon(0.59, 0.60, 100).status == "pass"
    assert half_epsilon(0.59, None, 100).status == "inconclusive"


def test_the_best_accuracy_at_half_the_radius_is_the_best_models_under_its_strongest_attack(tmp_path):
    def entry(epsilon, accuracy, norm="linf"):
        return {"norm": norm, "epsilon": epsilon, "accuracy": accuracy}

    threat = Linf(epsilon="8/255")
    own = {"a": entry("4/255", 0.5), "b": entry("4/255", 0.3), "c": entry("8/255", 0.1), "d": entry("4/255", 0.9, "l2")}
    assert best_known(threat, own, [], "birds") == 0.3
    assert best_known(threat, {"c": own["c"]}, [], "birds") is None
    folder = tmp_path / "robustness"
    folder.mkdir()
    (folder / "summary.json").write_text('{"data": "birds", "attacks": {"x": {"norm": "linf", "epsilon": 0.0156862745, "accuracy": 0.4}}}')  # fmt: skip  # noqa: E501
    assert best_known(threat, own, [str(tmp_path)], "birds") == 0.4
    with pytest.raises(UserError, match=r"evaluation.detection.half_epsilon=.*cars"):
        best_known(threat, own, [str(tmp_path)], "cars")
    with pytest.raises(UserError, match=r"half_epsilon=.*half the radius"):
        best_known(Linf(epsilon="2/255"), {}, [str(tmp_path)], "birds")
    with pytest.raises(UserError, match=r"half_epsilon=nowhere: there is no evaluation"):
        best_known(threat, own, ["nowhere"], "birds")


def test_the_graph_check_tells_no_gradient_from_one_that_misleads():
    def table(alive, told, n=100):
        kinds = [(GRADIENT + "d", alive), (DIFFERENCE + "d", told)]
        return table_of([row(i, name, 0, i < count) for name, count in kinds for i in range(n)])

    assert detector_graph(table(100, 100), "d").status == "pass"
    assert detector_graph(table(90, 90), "d").status == "fail"
    assert detector_graph(table(100, 60), "d").status == "inconclusive"
    assert detector_graph(table(0, 0, n=0), "d").status == "inconclusive"


def check(name, status):
    return Check(name, status, 1, 2, name)


def test_a_white_box_of_few_steps_claims_nothing():
    assert (effort(29).status, effort(30).status) == ("fail", "pass")


def test_only_a_white_box_on_a_verified_evaluation_with_all_checks_passed_is_verified():
    good = [check("detector_graph", "pass"), check("half_epsilon", "inconclusive")]
    assert detector_verdict(good, "verified", white_box=True) == "verified"
    assert detector_verdict(good, "verified", white_box=False) == NO_CLAIM
    assert detector_verdict(good, "upper bound, unverified", white_box=True) == "upper bound, unverified"
    assert detector_verdict(good, "invalid", white_box=True) == "invalid"
    assert detector_verdict([], "verified", white_box=True) == "upper bound, unverified"
    for bad in (check("adaptive_dominates", "fail"), check("detector_graph", "inconclusive")):
        assert detector_verdict([*good, bad], "verified", white_box=True) == "upper bound, unverified"
    extraordinary = [check("detector_graph", "pass"), check("half_epsilon", "fail")]
    assert detector_verdict(extraordinary, "verified", white_box=True) == "upper bound, unverified"
    assert detector_verdict([check("detector_hygiene", "fail")], "verified", white_box=True) == "invalid"


def test_checks_of_all_detectors_are_shown_as_the_worst():
    (found,) = united({"a": [check("x", "pass")], "b": [check("x", "fail")], "c": [check("x", "inconclusive")]})
    assert (found.status, found.detail) == ("fail", "x (b)")


@pytest.mark.parametrize(("gap", "score", "won"), [(1.0, 2.5, True), (-1.0, 2.5, False), (1.0, 1.5, False)])
def test_a_denial_of_service_is_won_where_the_class_is_right_and_the_image_rejected(gap, score, won):
    logits = torch.tensor([[gap, 0.0]])
    output = Output(logits=logits, embedding=logits, scores={"d": torch.tensor([score])})
    wanted = RightAndRejected(detector="d", tau=2.0, scale=0.5)
    assert (wanted(output, torch.tensor([0])) > 0).tolist() == [won]
