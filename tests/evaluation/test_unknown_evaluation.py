"""Unknown images in an evaluation: what is told of them follows from the rows and the written calibration scores."""

import copy
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy import SIZE, data_module, evaluate

from robustfg.attacks import Attack
from robustfg.core.errors import UserError
from robustfg.data.arrays import ArraySplit
from robustfg.detectors import Energy, Fitted, Mahalanobis, Watched
from robustfg.evaluation.detection import Detection
from robustfg.evaluation.open_set import ranking

MAKE = {"energy": Energy, "mahalanobis": Mahalanobis}


def noise(count, seed):
    """Images of nothing at all."""
    pixels = np.random.default_rng(seed).integers(60, 200, (count, SIZE, SIZE), dtype=np.uint8)
    return SimpleNamespace(images=ArraySplit(pixels, np.zeros(count, np.int64), "noise"))


def detection(unknown, **options):
    nodes = {name: {"_target_": f"robustfg.detectors.{kind.__name__}"} for name, kind in MAKE.items()}
    quick = {"fpr": 0.1, "grid": (0.05, 0.2), "steps": 5, "queries": 5, "black_box": False} | options
    return Detection(detectors={name: kind() for name, kind in MAKE.items()}, nodes=nodes, unknown=unknown, **quick)


SETS = {"noise": noise(21, 1), "more": noise(10, 2)}


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unknown")
    model = copy.deepcopy(trained)
    summary = evaluate(model, folder, data=data_module(max_test_samples=20), checks=0, detection=detection(SETS))
    folder /= "robustness"
    rows = pq.read_table(folder / "unknown.parquet").to_pylist()
    known = [row for row in pq.read_table(folder / "records.parquet").to_pylist() if row["attack"] == "clean"]
    fitted = Fitted.read(folder / "detectors.pt", lambda node, option: MAKE[option.removeprefix("detector.")]())
    return SimpleNamespace(folder=folder, summary=summary, model=model, rows=rows, known=known, fitted=fitted)


def test_every_unknown_image_has_a_row_with_the_scores_that_the_fitted_detectors_give_it(run):
    assert [(row["unknown"], row["index"]) for row in run.rows] == [
        *(("noise", i) for i in range(21)), *(("more", i) for i in range(10)),
    ]  # fmt: skip
    pixels = [s.images.image(i) for s in SETS.values() for i in range(len(s.images.labels))]
    image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        output = Watched(run.model, run.fitted.detectors).eval()(image)
    assert [row["prediction"] for row in run.rows] == output.logits.argmax(1).tolist()
    for name, scores in output.scores.items():
        assert np.allclose([row[f"score/{name}"] for row in run.rows], scores, rtol=1e-4, atol=1e-5), name


def test_the_block_is_a_naive_count_over_the_rows_and_the_calibration_scores(run):
    assert list(run.summary["unknown"]) == ["noise", "more"]
    for name, block in run.summary["unknown"].items():
        rows = [row for row in run.rows if row["unknown"] == name]
        assert block["n"] == len(rows)
        for detector, told in block["detectors"].items():
            known = [row[f"score/{detector}"] for row in run.known]
            right = [row["correct"] for row in run.known]
            for state, column in (("clean", "score/"), ("attacked", "least/")):
                scores = [row[column + detector] for row in rows]
                pairs = [(float(u > k) + 0.5 * float(u == k), r) for k, r in zip(known, right, strict=True) for u in scores]  # fmt: skip  # noqa: E501
                assert told[state]["auroc"] == pytest.approx(np.mean([won for won, _ in pairs]))
                assert told[state]["oscr"] == pytest.approx(np.mean([won * r for won, r in pairs]))
                assert [part["alpha"] for part in told[state]["accepted"]] == [0.05, 0.1, 0.2]
                for part in told[state]["accepted"]:
                    tau = run.fitted.tau(detector, part["alpha"])
                    assert part["tau"] == tau
                    assert part["unknown_accepted"]["count"] == sum(score <= tau for score in scores)
                    assert part["known_accepted"]["count"] == sum(score <= tau for score in known)
                expected = ranking(np.array(known), np.array(right), np.array(scores))
                assert {key: told[state][key] for key in expected} == expected


def test_the_attack_lowers_scores_until_the_image_is_accepted_at_the_lowest_threshold(run):
    for detector in MAKE:
        lowest = run.fitted.tau(detector, 0.2)
        clean, least = (np.array([row[kind + detector] for row in run.rows]) for kind in ("score/", "least/"))
        already = clean <= lowest
        assert (least <= clean).all()
        assert np.allclose(least[already], clean[already])
        assert (least[~already] < clean[~already]).mean() > 0.9
    told = run.summary["unknown"]["noise"]["attacks"]
    assert {part["epsilon"] for part in told.values()} == {"8/255"}
    assert {part["steps"] for part in told.values()} == {5}


class KilledError(Exception):
    pass


def test_a_killed_evaluation_attacks_only_the_unknown_images_that_are_left(classifier, tmp_path, monkeypatch):
    real, calls = Attack.attempts, []

    def run(folder, dies_at=None, **options):
        calls.clear()

        def counting(self, model, image, *arguments, **keywords):
            if self.name.startswith("acceptance/"):
                if len(calls) == dies_at:
                    raise KilledError
                calls.append(len(image))
            return real(self, model, image, *arguments, **keywords)

        data = data_module(max_test_samples=20, batch_size=8)
        with monkeypatch.context() as patch:
            patch.setattr(Attack, "attempts", counting)
            summary = evaluate(classifier, tmp_path / folder, data=data, checks=0, detection=detection(SETS, **options))
        tables = (pq.read_table(tmp_path / folder / "robustness" / name) for name in ("unknown.parquet", "records.parquet"))  # fmt: skip  # noqa: E501
        return [table.drop(["seconds"] if "seconds" in table.column_names else []) for table in tables], summary

    whole, told = run("whole")
    assert sum(calls) == 2 * 31, "both detectors, all images of both sets"
    for folder in ("killed", "changed"):
        with pytest.raises(KilledError):
            run(folder, dies_at=8)
        done = sum(calls)
        assert 2 * 21 < done < 2 * 31, "in the middle of the second set"
    continued, told_again = run("killed")
    assert sum(calls) == 2 * 31 - done
    assert all(one.equals(other) for one, other in zip(whole, continued, strict=True))
    assert told_again["unknown"] == told["unknown"]
    assert not list((tmp_path / "killed" / "robustness").glob("unfinished-*"))
    run("changed", steps=6)
    assert sum(calls) == 2 * 31, "what was found in fewer steps is not continued"


def test_without_the_white_box_unknown_images_are_only_read_and_an_earlier_table_goes(classifier, tmp_path):
    data, few = data_module(max_test_samples=20), {"some": noise(6, 3)}
    summary = evaluate(classifier, tmp_path, data=data, checks=0, detection=detection(few, white_box=False))
    path = tmp_path / "robustness" / "unknown.parquet"
    assert pq.read_table(path).column_names == ["unknown", "index", "prediction", "score/energy", "score/mahalanobis"]
    assert set(summary["unknown"]["some"]["detectors"]["energy"]) == {"clean"}
    assert "unknown" not in evaluate(classifier, tmp_path, data=data, checks=0)
    assert not path.exists()


def test_a_set_of_no_images_is_told_before_anything_is_attacked(classifier, tmp_path):
    with pytest.raises(UserError, match="the unknown split has 0 samples"):
        evaluate(classifier, tmp_path, checks=0, detection=detection({"none": noise(0, 4)}))
    assert not (tmp_path / "robustness" / "records.parquet").exists()
