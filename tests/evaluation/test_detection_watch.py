import copy
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from toy import CLASSES, Blobs, Convolutions, data_module, evaluate, suite

from robustfg.attacks import FMN, L2, GradientAttack, Linf, Patch, Steepest, white_box
from robustfg.classifier import Classifier
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.data.files import FileSplit
from robustfg.data.folder import Folder
from robustfg.detectors import Detector, Energy, Fitted, Mahalanobis, Watched, fit
from robustfg.evaluation import RobustnessEvaluation, summary
from robustfg.evaluation.aggregation import summarise
from robustfg.evaluation.checks import Probe
from robustfg.evaluation.detection import Detection, attackers
from robustfg.evaluation.detection.watch import claimed_ball
from robustfg.evaluation.records import RecordStore
from robustfg.losses import Softmax

MAKE = {"energy": Energy, "mahalanobis": Mahalanobis}
NODES = {name: {"_target_": f"robustfg.detectors.{kind.__name__}"} for name, kind in MAKE.items()}
NO_ATTACK = ("check:detector", "check:finite", "check:determinism", "check:unbounded")
"""Checks that are recorded like attacks and attack nothing within the ball."""
QUICK = {"fpr": 0.1, "grid": (0.05, 0.2), "steps": 4, "queries": 10}


def detection(*names, **options):
    chosen = names or tuple(MAKE)
    detectors = {name: MAKE[name]() for name in chosen}
    return Detection(detectors=detectors, nodes={name: NODES[name] for name in chosen}, **(QUICK | options))


def few(**options):
    return data_module(max_test_samples=40, **options)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    model = copy.deepcopy(trained)
    summary = evaluate(model, folder, data=few(), checks=20, detection=detection(forced_rejection=True))
    return SimpleNamespace(folder=folder / "robustness", summary=summary, model=model)


def made(node, option):
    return MAKE[option.removeprefix("detector.")]()


def passes(r, name, tau):
    least = r[f"least/{name}"]
    return (not r["correct"] and r[f"score/{name}"] <= tau) or (least is not None and least <= tau)


def rows_of(folder):
    return pq.read_table(folder / "records.parquet").to_pylist()


def test_joint_accuracy_is_a_naive_count_over_the_rows_and_the_calibration_scores(run):
    rows = rows_of(run.folder)
    fitted = Fitted.read(run.folder / "detectors.pt", made)
    for name, told in run.summary["detection"]["detectors"].items():
        tau = fitted.tau(name, 0.1)
        assert told["tau"] == tau
        clean = {r["index"]: r for r in rows if r["attack"] == "clean"}
        good = {i for i, r in clean.items() if r["correct"] and r[f"score/{name}"] <= tau}
        passed = {"semi_white_box": set(), "black_box": set(), "white_box": set()}
        for r in rows:
            model, _, rest = r["attack"].removeprefix("check:joint_").partition("/")
            model = "white_box" if model == "reference" else model
            model = model if model in passed else "semi_white_box"
            if r["attack"].startswith(NO_ATTACK) or r["attack"].startswith("forced"):
                model = "white_box" if rest.startswith(name) else None
            if rest and not rest.startswith(name):  # aimed at another detector, and may still pass this one
                model = "white_box" if model in ("white_box", "black_box") else None
            if model is None:
                continue
            if passes(r, name, tau):
                passed[model].add(r["index"])
        passed["white_box"] |= passed["semi_white_box"] | passed["black_box"]
        for model, through in passed.items():
            assert told["threats"][model]["joint"]["correct"] == len(good - through), (name, model)
            assert told["threats"][model]["joint"]["accepted"] == len(good)
        assert told["threats"]["white_box"]["joint"]["correct"] <= told["threats"]["semi_white_box"]["joint"]["correct"]


def test_without_detector_the_curve_begins_at_the_worst_case(run):
    for told in run.summary["detection"]["detectors"].values():
        first = told["threats"]["semi_white_box"]["curve"][0]
        suite_alone = run.summary["attacks"]
        assert first["fpr"] == 0
        assert first["correct"] <= min(part["correct"] for part in suite_alone.values())
        assert first["accepted"] == run.summary["clean"]["correct"]
        assert run.summary["worst_case"]["correct"] <= told["threats"]["white_box"]["curve"][0]["correct"]


def test_every_row_has_the_scores_of_its_image_and_joint_attacks_the_least_of_theirs(run):
    rows = rows_of(run.folder)
    for r in rows:
        assert r["score/energy"] is not None
        assert r["score/mahalanobis"] is not None
        attacked = r["attack"].startswith(("white_box/energy", "black_box/energy", "check:joint_reference/energy"))
        assert (r["least/energy"] is not None) == attacked
        if attacked and not r["correct"]:
            assert r["least/energy"] <= r["score/energy"] + 1e-5
    samples = {int(s.index): s for s in (few().samples("test")[i] for i in range(40))}
    output = Watched(run.model, {"energy": Energy()})(torch.stack([s.image for s in samples.values()]))
    told = {r["index"]: r["score/energy"] for r in rows if r["attack"] == "clean"}
    assert np.allclose(list(output.scores["energy"].tolist()), [told[i] for i in samples], atol=1e-5)


def test_detectors_are_fitted_on_train_and_calibrated_on_right_validation_samples(run):
    data = few()
    train = data.samples("train").under(data.fit_square)
    batch = [train[i] for i in reversed(range(len(train)))]
    expected = {"mahalanobis": Mahalanobis()}
    fit(Watched(run.model, expected), [Batch(*(torch.stack(list(map(torch.as_tensor, column))) for column in zip(*batch, strict=True)))])  # fmt: skip  # noqa: E501
    fitted = Fitted.read(run.folder / "detectors.pt", made)
    found = fitted.detectors["mahalanobis"].state_dict()
    for key, value in expected["mahalanobis"].state_dict().items():
        assert torch.allclose(found[key].double(), value.double(), rtol=1e-3, atol=1e-4), key
    val = [data.samples("val")[i] for i in range(len(data.samples("val")))]
    image, label = torch.stack([s.image for s in val]), torch.tensor([int(s.label) for s in val])
    with torch.no_grad():
        output = Watched(run.model, fitted.detectors)(image)
    right = output.logits.argmax(1) == label
    for name, scores in output.scores.items():
        assert torch.allclose(scores[right].sort().values, fitted.calibration[name], atol=1e-4)


def test_the_suite_and_its_checks_are_the_same_with_and_without_detectors(run, classifier, tmp_path):
    plain = evaluate(classifier, tmp_path, data=few(), checks=20)
    assert "detection" not in plain
    names = [check["name"] for check in plain["checks"]]
    assert run.summary["checks"][: len(names)] == plain["checks"]
    assert {check["name"] for check in run.summary["checks"][len(names) :]} == {
        "detector_hygiene", "detector_graph", "adaptive_dominates", "realised_fpr", "half_epsilon", "joint_reference",
        "effort",
    }  # fmt: skip
    assert plain["verdict"] == run.summary["verdict"]
    drop = ("forwards", "backwards", "seconds")
    for name, part in plain["attacks"].items():
        assert {k: v for k, v in part.items() if k not in drop} == {
            k: v for k, v in run.summary["attacks"][name].items() if k not in drop
        }
    assert not (tmp_path / "robustness" / "detectors.pt").exists()


class Blocks(nn.Module):
    """The mean brightness of every block, from 0 to 1 as in the templates of ``Blobs``."""

    channels = 9

    def forward(self, image):
        blocks = F.avg_pool2d(image.mean(1, keepdim=True), 4)
        return (blocks.flatten(1)[:, :, None, None] - 0.35) / 0.3


def nearest_template():
    """Chooses the nearest template: noise of 0.07 a block changes no class, and 0.3 in brightness changes any."""
    loss, templates = Softmax(channels=9, num_classes=CLASSES), torch.tensor(Blobs().templates[:, ::4, ::4]).flatten(1)
    weights = {"weight": templates, "bias": -templates.square().sum(1) / 2}
    loss.load_state_dict({key: weights[key.rpartition(".")[2]] for key in loss.state_dict()})
    return Classifier(backbone=Blocks(), loss=loss, num_classes=CLASSES).eval()


def test_attacks_of_fixed_settings_tell_that_the_white_box_was_too_weak(tmp_path, monkeypatch):
    def selective(*arguments, **options):
        attacks = white_box(*arguments, **options).items()
        return {name: replace(it, size=1e-6) for name, it in attacks if name.endswith("selective")}

    monkeypatch.setattr(attackers, "white_box", selective)
    monkeypatch.setattr(Probe, "on", lambda samples, suite: Probe(frozenset(samples), {}))  # which would count, too
    timid = GradientAttack(name="timid", threat=Linf(epsilon=0.3), step=Steepest(size=1e-6), steps=2)
    found = detection("energy", black_box=False, steps=2)
    summary = evaluate(
        nearest_template(), tmp_path, data=few(), attacks={"timid": timid}, checks=40, detection=found
    )  # fmt: skip
    told = summary["detection"]["detectors"]["energy"]
    check = {check["name"]: check for check in told["checks"]}["joint_reference"]
    passed = {True: set(), False: set()}
    rows = [r for r in rows_of(tmp_path / "robustness") if not r["attack"].startswith(NO_ATTACK)]
    for r in rows:
        if passes(r, "energy", told["tau"]):
            passed[r["attack"].startswith("check:joint_reference/")].add(r["index"])
    good = {r["index"] for r in rows if r["attack"] == "clean" and r["correct"] and r["score/energy"] <= told["tau"]}
    tried = [r for r in rows if r["attack"].startswith(("timid", "white_box"))]
    assert len(tried) == 80
    assert all(r["correct"] for r in tried)
    assert (check["status"], check["count"], check["n"]) == ("fail", len(passed[True] & good), len(good))
    assert not passed[False]
    assert check["count"] > 20
    assert told["threats"]["white_box"]["joint"]["correct"] == len(good - passed[True])
    assert told["verdict"] == "upper bound, unverified"


def test_a_claim_is_about_the_largest_ball_of_the_first_norm_and_leaves_other_norms_out(classifier, tmp_path):
    given = {
        name: GradientAttack(name=name, threat=threat, step=Steepest(size="eps"), steps=1)
        for name, threat in [("small", Linf(epsilon=0.05)), ("two", L2(epsilon=4.0)), ("large", Linf(epsilon=0.1))]
    }
    summary = evaluate(classifier, tmp_path, data=few(), attacks=given, detection=detection("energy", black_box=False))
    block = summary["detection"]
    assert block["threat"] == {"norm": "linf", "epsilon": "0.1", "left_out": ["two"]}
    told = block["detectors"]["energy"]["threats"]
    assert told["semi_white_box"]["attacks"] == ["small", "large"]
    assert all(attack["epsilon"] == "0.1" for attack in block["attacks"].values())
    rows = [r for r in rows_of(tmp_path / "robustness") if r["attack"] in ("clean", "small", "large")]
    wrong = {r["index"] for r in rows if not r["correct"]}
    assert told["semi_white_box"]["curve"][0]["correct"] == 40 - len(wrong)


def test_a_search_for_the_smallest_perturbation_does_not_widen_the_claim():
    bounded, wide = suite(), {"fmn": FMN(name="fmn", threat=Linf(epsilon=1))}
    assert claimed_ball(bounded | wide) == claimed_ball(wide | bounded) == Linf(epsilon="8/255")
    assert claimed_ball(wide) == Linf(epsilon=1)


def test_what_the_references_find_counts_in_the_worst_case(classifier, tmp_path, monkeypatch):
    counted = {}
    monkeypatch.setattr(summary, "summarise", lambda *given, also: counted.update(also=also) or summarise(*given, also=also))  # fmt: skip  # noqa: E501
    found = detection("energy", black_box=False, steps=1)
    block = evaluate(classifier, tmp_path, data=few(), checks=5, detection=found)["detection"]
    assert block["references"]
    assert set(block["references"]) < set(counted["also"])


def test_references_that_were_not_tried_are_not_told(classifier, tmp_path):
    found = detection("energy", black_box=False, steps=1)
    told = evaluate(classifier, tmp_path, data=few(), checks=0, detection=found)
    assert told["detection"]["references"] == {}


def test_a_suite_without_a_ball_is_refused_with_detectors(classifier, tmp_path):
    patched = {"patch": GradientAttack(name="patch", threat=Patch(epsilon=0.1), step=Steepest(size=0.1), steps=1)}
    with pytest.raises(UserError, match="attack: .* needs an attack in an l-inf, l2 or l1 ball"):
        evaluate(classifier, tmp_path, data=few(), attacks=patched, detection=detection("energy"))


class KilledError(Exception):
    pass


def test_a_killed_evaluation_with_detectors_ends_with_the_same_rows(classifier, tmp_path, monkeypatch):
    def once(folder):
        evaluate(classifier, folder, data=data_module(max_test_samples=20, batch_size=8), checks=5,
                 detection=detection("mahalanobis"))  # fmt: skip

    once(tmp_path / "whole")
    real, calls = RecordStore.add, {"n": 0}

    def dying(self, *unit):
        calls["n"] += 1
        if calls["n"] == 25:
            raise KilledError
        return real(self, *unit)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "add", dying)
        with pytest.raises(KilledError):
            once(tmp_path / "killed")
    once(tmp_path / "killed")
    tables = [
        pq.read_table(tmp_path / name / "robustness/records.parquet").drop(["seconds"]) for name in ("whole", "killed")
    ]
    assert tables[0].equals(tables[1])


def test_rows_belong_to_the_detectors_their_settings_and_the_threshold(classifier, tmp_path):
    def prints(found):
        callback = RobustnessEvaluation(attacks=suite(), folder=tmp_path, checks=0, detection=found)
        evaluator = SimpleNamespace(
            datamodule=few(), global_rank=0, num_test_batches=[1], is_global_zero=True, progress_bar_callback=None,
            strategy=SimpleNamespace(batch_to_device=lambda batch: batch, root_device=torch.device("cpu")),
        )  # fmt: skip
        evaluator.datamodule.trainer = None
        callback.on_test_start(evaluator, classifier)
        callback.progress.stop()
        return callback.store.fingerprints

    none, one, same = prints(None), prints(detection("energy")), prints(detection("energy"))
    assert one == same
    assert none["clean"] != one["clean"], "rows without scores cannot be continued with detectors"
    other = prints(detection("energy", fpr=0.2, grid=(0.05, 0.2)))
    assert other["clean"] == one["clean"]
    assert other["white_box/energy/max_form"] != one["white_box/energy/max_form"]
    hotter = replace(detection("energy"), nodes={"energy": NODES["energy"] | {"temperature": 2.0}})
    assert prints(hotter)["clean"] != one["clean"]


class Hidden(Detector):
    """A detector whose gradient is masked."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def score(self, output, views=()):
        return self.mask(Energy().score(output))


@pytest.mark.parametrize("mask", [lambda score: score.detach(), lambda score: (score * 4).round() / 4], ids=["cut", "steps"])  # fmt: skip  # noqa: E501
def test_a_planted_gradient_mask_is_told(classifier, tmp_path, mask):
    found = Detection(detectors={"hidden": Hidden(mask)}, nodes={"hidden": {}}, **QUICK)
    summary = evaluate(classifier, tmp_path, data=few(), checks=40, detection=found)
    told = summary["detection"]["detectors"]["hidden"]
    assert {check["name"]: check["status"] for check in told["checks"]}["detector_graph"] == "fail"
    assert told["verdict"] == "upper bound, unverified"
    assert summary["verdict"] == "verified", "the classifier's own number does not depend on it"


def test_what_was_aimed_at_another_detector_counts_against_a_masked_one(classifier, tmp_path):
    masked = {"hidden": Hidden(lambda score: 2 * score.detach() - score), "energy": Energy()}
    options = QUICK | {"fpr": 0.3, "black_box": False}
    found = Detection(detectors=masked, nodes={name: {} for name in masked}, **options)
    told = evaluate(classifier, tmp_path, data=few(), checks=0, detection=found)["detection"]["detectors"]["hidden"]
    rows, tau = rows_of(tmp_path / "robustness"), told["tau"]
    good = {r["index"] for r in rows if r["attack"] == "clean" and r["correct"] and r["score/hidden"] <= tau}
    through = {False: set(), True: set()}
    for r in rows:
        if passes(r, "hidden", tau):
            through["white_box/energy" in r["attack"]].add(r["index"])
    assert len(through[True] - through[False]) > 0
    assert told["threats"]["white_box"]["joint"]["correct"] == len(good - through[True] - through[False])


def test_without_the_white_box_nothing_is_claimed(classifier, tmp_path):
    found = detection("energy", white_box=False)
    told = evaluate(classifier, tmp_path, data=few(), checks=10, detection=found)["detection"]["detectors"]["energy"]
    assert told["verdict"].startswith("no claim")
    assert "white_box" not in told["threats"]


def test_calibrating_on_what_was_fitted_on_makes_the_claim_invalid(classifier, tmp_path):
    source = Blobs()
    source.val = source.train
    data = DataModule(source=source, image_size=12, batch_size=32, num_workers=0, max_test_samples=20)
    found = detection("energy", black_box=False)
    summary = evaluate(classifier, tmp_path, data=data, checks=5, detection=found)
    assert summary["detection"]["detectors"]["energy"]["verdict"] == "invalid"
    assert {c["name"]: c["status"] for c in summary["checks"]}["detector_hygiene"] == "fail"


@pytest.mark.parametrize("name", MAKE)
def test_a_training_image_is_found_in_the_test_folder(classifier, tmp_path, name, monkeypatch):
    """By its pixels, a BMP of what is a PNG elsewhere; by the file's bytes where no detector reads training images."""
    read, image = [], FileSplit.image
    monkeypatch.setattr(FileSplit, "image", lambda split, at: read.append(split.keys[at]) or image(split, at))
    blobs, root = Blobs(train=100, test=20), tmp_path / "images"
    for split in ("train", "test"):
        samples = getattr(blobs, split)
        for i, label in enumerate(samples.labels):
            path = root / split / "abcde"[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(samples.image(i)).save(path)

    def hygiene(run):
        data = DataModule(source=Folder(root=str(root)), image_size=12, batch_size=16, num_workers=0, val_fraction=0.2)
        told = evaluate(
            classifier, tmp_path / run, data=data, checks=1, detection=detection(name, black_box=False, steps=1)
        )
        return {check["name"]: check for check in told["checks"]}["detector_hygiene"], data.keys("train")

    found, train = hygiene("clean")
    assert (found["status"], found["count"], found["n"]) == ("pass", 0, 120)
    for i, key in enumerate(sorted(train.values())[:3]):
        copied = root / "test" / "b" / f"another{i}"
        if name == "energy":
            shutil.copyfile(root / key, copied.with_suffix(".png"))
        else:
            Image.open(root / key).save(copied.with_suffix(".bmp"))
    assert name != "energy" or not set(read) & set(train.values()), "no training image is decoded"
    found, _ = hygiene("leaked")
    assert (found["status"], found["count"], found["n"]) == ("fail", 3, 120)
    assert "another" in found["detail"]


def test_too_few_validation_samples_are_told_with_the_number_needed(classifier, tmp_path):
    with pytest.raises(UserError, match=r"evaluation.detection.fpr=0.01 needs 99 validation samples .* 40 of 40"):
        evaluate(classifier, tmp_path, data=few(), detection=detection("energy", fpr=0.01))


def test_the_validation_split_cannot_be_tested_with_detectors_calibrated_on_it(classifier, tmp_path):
    with pytest.raises(UserError, match=r"evaluation.split=val"):
        evaluate(classifier, tmp_path, data=few(), split="val", detection=detection("energy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fpr": 0.0}, r"evaluation.detection.fpr must be in \(0, 1\), got 0.0"),
        ({"grid": (0.1, 1.0)}, r"evaluation.detection.grid must be in \(0, 1\), got 1.0"),
        ({"steps": 0}, r"evaluation.detection.steps must be >= 1, got 0"),
        ({"queries": 0}, r"evaluation.detection.queries must be >= 1"),
    ],
)
def test_wrong_options_are_told_by_name(options, message):
    with pytest.raises(UserError, match=message):
        detection("energy", **options)


def test_no_detector_is_told():
    with pytest.raises(UserError, match="detector is empty"):
        Detection(detectors={}, nodes={})


def test_a_surrogate_attacks_by_transfer(classifier, tmp_path):
    other = copy.deepcopy(classifier)
    other.backbone = Convolutions()
    found = detection("energy", white_box=False, surrogate=other.eval(), surrogate_name="other")
    block = evaluate(classifier, tmp_path, data=few(), checks=0, detection=found)["detection"]
    assert block["surrogate"] == "other"
    assert "black_box/energy/transfer_surrogate" in block["detectors"]["energy"]["threats"]["black_box"]["attacks"]
