import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy import SIZE, data_module, evaluate, suite

from robustfg.attacks import APGD, L1, GradientAttack, Linf, MostConfused, TargetedDLR, TopClasses
from robustfg.core.errors import UserError
from robustfg.evaluation import RobustnessEvaluation
from robustfg.evaluation.records import CLEAN


def naive_counts(model, attacks):
    """One sample at a time, without any of the evaluation's code."""
    samples, clean, under = data_module().samples("test"), 0, dict.fromkeys(attacks, 0)
    everything = 0
    for image, label, index in (samples[i] for i in range(len(samples))):
        image, label, index = image[None], label[None], index[None]
        right = bool(model(image).logits.argmax() == label)
        withstood = {
            name: right and bool(model(attack(model, image, label, index)).logits.argmax() == label)
            for name, attack in attacks.items()
        }
        clean += right
        everything += right and all(withstood.values())
        for name, value in withstood.items():
            under[name] += value
    return clean, under, everything


def test_counts_equal_a_naive_evaluation_one_sample_at_a_time(classifier, tmp_path):
    summary = evaluate(classifier, tmp_path)
    clean, under, everything = naive_counts(classifier, suite())
    assert summary["n"] == 101
    assert summary["clean"]["correct"] == clean
    # In a batch of another size slopes may round to the other side of 0, which may decide a sample.
    for name, part in summary["attacks"].items():
        assert abs(part["correct"] - under[name]) <= 1, name
    reference = summary["checks"][-2]["count"]
    assert abs(everything - reference - summary["worst_case"]["correct"]) <= 1
    assert max(under.values()) < clean - 5


def test_batch_size_changes_nothing(classifier, tmp_path):
    tables = []
    for size in (7, 101):
        evaluate(classifier, tmp_path / str(size), data=data_module(batch_size=size))
        tables.append(pq.read_table(tmp_path / str(size) / "robustness" / "records.parquet"))
    for name in ("index", "attack", "restart"):
        assert tables[0][name].to_pylist() == tables[1][name].to_pylist(), name
    other = np.abs(np.subtract(*(table["margin"].to_numpy() for table in tables))) > 1e-3
    for name in ("prediction", "correct", "first_success", "forwards", "backwards"):
        other |= np.not_equal(*(table[name].to_numpy(zero_copy_only=False) for table in tables))
    assert other.mean() < 0.02  # slopes and margins that round to the other side of 0 in a batch of another size


def test_every_sample_has_one_row_per_attack_and_restart(classifier, tmp_path):
    evaluate(classifier, tmp_path, attacks=suite(restarts=2), checks=0)
    table = pq.read_table(tmp_path / "robustness" / "records.parquet")
    keys = list(zip(*(table[name].to_pylist() for name in ("attack", "restart", "index")), strict=True))
    assert len(set(keys)) == len(keys) == 101 * 5
    assert {key[:2] for key in keys} == {(CLEAN, 0), ("fgsm", 0), ("fgsm", 1), ("pgd", 0), ("pgd", 1)}


def test_every_target_of_a_targeted_attack_is_a_round_of_its_own(classifier, tmp_path):
    attack = APGD(
        name="apgd_t", threat=Linf(epsilon="8/255"), steps=5, objective=TargetedDLR(), targets=TopClasses(count=6)
    )
    evaluate(classifier, tmp_path, attacks={"apgd_t": attack}, checks=0)
    table = pq.read_table(tmp_path / "robustness" / "records.parquet").to_pylist()
    assert len(table) == 101 * 7
    assert {row["restart"] for row in table if row["attack"] == "apgd_t"} == set(range(6))
    assert all(row["forwards"] == 0 for row in table if row["attack"] == "apgd_t" and row["restart"] > 3)  # 5 classes


def test_kept_perturbations_break_the_samples_they_belong_to(classifier, tmp_path):
    evaluate(classifier, tmp_path, checks=0)
    records = pq.read_table(tmp_path / "robustness" / "records.parquet").to_pylist()
    right = {row["index"] for row in records if row["attack"] == CLEAN and row["correct"]}
    broken = {row["index"] for row in records if not row["correct"]} & right
    kept = pq.read_table(tmp_path / "robustness" / "perturbations").to_pylist()
    assert {row["index"] for row in kept} == broken
    samples = data_module().samples("test")
    for row in kept:
        delta = np.frombuffer(row["delta"], row["dtype"]).reshape(row["shape"])
        delta = torch.tensor(delta / 255 if row["dtype"] == "int8" else delta, dtype=torch.float32)
        sample = samples[row["index"]]
        assert delta.shape == (3, SIZE, SIZE)
        assert delta.abs().max() <= 8 / 255 + 1e-6
        assert classifier((sample.image + delta).clamp(0, 1)[None]).logits.argmax() != sample.label


def test_summary_is_the_documented_interface(classifier, tmp_path):
    evaluate(classifier, tmp_path)
    summary = json.loads((tmp_path / "robustness" / "summary.json").read_text())
    assert summary["schema"] == 1
    assert {"run", "data", "split", "n", "ids_sha256", "precision", "world_size", "clean", "attacks", "worst_case",
            "checks", "verdict"} <= summary.keys()  # fmt: skip
    assert {"norm", "epsilon", "steps", "restarts", "objective", "library", "correct", "n", "accuracy", "ci95",
            "forwards", "backwards", "seconds"} <= summary["attacks"]["pgd"].keys()  # fmt: skip
    assert summary["attacks"]["pgd"]["epsilon"] == "8/255"
    assert all(check.keys() == {"name", "status", "count", "n", "detail"} for check in summary["checks"])


def test_rows_are_continued_only_under_the_same_settings_down_to_the_threat_and_the_targets(
    classifier, tmp_path, monkeypatch
):
    """The share of l1 coordinates is in no summary, but changes what is found; a measured confusion is no setting."""

    def prints(attack):
        callback = RobustnessEvaluation(attacks={"a": attack}, folder=tmp_path, checks=0)
        trainer = SimpleNamespace(
            datamodule=data_module(),
            global_rank=0,
            num_test_batches=[1],
            is_global_zero=True,
            progress_bar_callback=None,
        )
        callback.on_test_start(trainer, classifier)
        callback.progress.stop()
        return callback.store.fingerprints["a"]

    one, same, other = (GradientAttack(threat=L1(epsilon=1, share=share)) for share in (0.01, 0.01, 0.5))
    assert one.describe() == other.describe()
    assert prints(one) == prints(same) != prints(other)
    aimed = [
        APGD(threat=Linf(epsilon="8/255"), objective=TargetedDLR(), targets=MostConfused(confusion=table))
        for table in (None, None, torch.eye(5))
    ]
    monkeypatch.setattr("robustfg.evaluation.callback.confusion_of", lambda *_: torch.rand(5, 5))  # rounding differs
    found = [prints(attack) for attack in aimed]
    assert found[0] == found[1] != found[2]


def test_caller_gets_the_model_back_as_it_was(classifier, tmp_path):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    evaluate(classifier, tmp_path, checks=8)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in classifier.parameters())


def test_half_precision_weights_are_refused(classifier, tmp_path):
    with pytest.raises(UserError, match="trainer.precision"):
        evaluate(classifier.bfloat16(), tmp_path)


def test_an_empty_suite_is_refused(classifier, tmp_path):
    from robustfg.evaluation import RobustnessEvaluation

    with pytest.raises(UserError, match="attack is empty"):
        RobustnessEvaluation(attacks={}, folder=tmp_path)
