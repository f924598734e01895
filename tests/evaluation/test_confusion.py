import pytest
import pytorch_lightning as pl
import torch
from toy import CLASSES, data_module, evaluate

from robustfg.attacks import Cascade, GradientAttack, Linf, MostConfused, TargetedMargin
from robustfg.evaluation import RobustnessEvaluation
from robustfg.evaluation.confusion import confusion_of
from robustfg.evaluation.validation import ValidationRobustness


def aimed(**options):
    return GradientAttack(
        name="confused", threat=Linf(epsilon="8/255"), objective=TargetedMargin(), steps=3,
        targets=MostConfused(count=1, **options),
    )  # fmt: skip


def naive_confusion(model, data):
    samples = data.samples("val")
    rows = [[] for _ in range(CLASSES)]
    with torch.no_grad():
        for image, label, _ in (samples[i] for i in range(len(samples))):
            logits = model(image[None]).logits[0].double()
            rows[int(label)].append(logits.exp() / logits.exp().sum())
    return torch.stack([torch.stack(row).mean(0) for row in rows])


@pytest.mark.parametrize("size", [1, 7, 200])
def test_confusion_is_the_mean_probability_over_the_validation_samples_of_each_true_class(classifier, size):
    table = confusion_of(classifier, data_module(batch_size=size), torch.device("cpu"))
    assert table.dtype == torch.float64
    assert torch.allclose(table, naive_confusion(classifier, data_module()), rtol=0, atol=1e-6)
    assert torch.allclose(table.sum(1), torch.ones(CLASSES, dtype=torch.float64))
    assert not torch.allclose(table, table.T, atol=1e-3)


def test_a_class_without_validation_samples_prefers_nobody(classifier, monkeypatch):
    data = data_module()
    labels = data.samples("val").labels
    monkeypatch.setitem(data.positions, "val", data.positions["val"][(labels != 2).numpy()])
    data._samples.clear()
    table = confusion_of(classifier, data, torch.device("cpu"))
    assert table[2].tolist() == [0.0] * CLASSES
    assert table[:2].sum() > 0


class Targets(MostConfused):
    """Notes what is chosen."""

    seen: list = []  # noqa: RUF012

    def choose(self, logits, label):
        chosen = super().choose(logits, label)
        self.seen.extend(zip(label.tolist(), chosen[:, 0].tolist(), strict=True))
        return chosen


def test_an_evaluation_measures_it_and_drives_every_sample_to_the_class_it_is_most_taken_for(classifier, tmp_path):
    Targets.seen.clear()
    attack = GradientAttack(
        name="confused", threat=Linf(epsilon="8/255"), objective=TargetedMargin(), steps=2, targets=Targets(count=1)
    )
    summary = evaluate(classifier, tmp_path, attacks={"confused": attack}, checks=0)
    table = naive_confusion(classifier, data_module()).fill_diagonal_(-1)
    nearest = dict(enumerate(table.argmax(1).tolist()))
    assert {label for label, _ in Targets.seen} == set(range(CLASSES))
    assert all(nearest[label] == target for label, target in Targets.seen)
    described = summary["attacks"]["confused"]["targets"]
    assert described["choice"] == "most_confused"
    assert len(described["confusion"]) == 12


def test_other_weights_are_measured_anew_by_the_same_callback(classifier, tmp_path):
    suite = {"confused": Cascade(name="confused", attacks={"a": aimed()})}
    callback = RobustnessEvaluation(attacks=suite, folder=tmp_path, checks=0)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    shown = []
    for _ in range(2):
        trainer.test(classifier, data_module(), verbose=False)
        shown.append(callback.summary["attacks"]["confused"]["stages"]["a"]["targets"]["confusion"])
        expected = naive_confusion(classifier, data_module())
        assert torch.allclose(callback.attacks["confused"].attacks["a"].targets.confusion, expected, rtol=0, atol=1e-6)
        with torch.no_grad():
            list(classifier.loss.parameters())[-1].add_(torch.arange(CLASSES))
    assert shown[0] != shown[1]


def test_the_look_during_training_measures_it_too(classifier):
    callback = ValidationRobustness(attacks={"confused": aimed()}, samples=20)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.validate(classifier, data_module(), verbose=False)
    assert torch.allclose(callback.now.targets.confusion, naive_confusion(classifier, data_module()), rtol=0, atol=1e-6)
    assert callback.attack.targets.confusion is None
