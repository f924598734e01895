"""A checkpoint with two heads, evaluated on either."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from commands import config_of

from robustfg.attacks import CrossEntropy, OnHead, Summed
from robustfg.checkpoint import Checkpoint
from robustfg.cli import assemble
from robustfg.core.types import Output
from robustfg.evaluate import evaluate, with_stored
from robustfg.train import train

QUICK = (
    "experiment=smoke", "loss=maxsep", "optimizer=adam", "test=false", "trainer.max_epochs=3",
    "trainer.limit_train_batches=4", "loss.prototypes_per_class=2", "loss.phases.joint.lr.backbone=1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maxsep")
    train(config_of("train", *QUICK), folder, command=[])
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def logits(checkpoint):
    """Labels, and both heads' logits of the test samples, by the model itself."""
    stored = Checkpoint.read(checkpoint)
    data = assemble.data_of(stored.config)
    classifier = assemble.classifier_of(stored.config, stored.classes)
    stored.load_into(classifier)
    samples = data.samples("test")
    batch = [samples[item] for item in range(len(samples))]
    with torch.no_grad():
        heads = classifier.eval()(torch.stack([sample.image for sample in batch])).heads
    return torch.stack([sample.label for sample in batch]), heads


def evaluated(checkpoint, folder, *options):
    options = (f"checkpoint={checkpoint}", "evaluation.checks=0", "evaluation.gallery=0", *options)
    evaluate(config_of("evaluate", *options), folder, command=[])
    return json.loads((folder / "robustness" / "summary.json").read_text())


@pytest.mark.parametrize("head", ["prototype", "attention"])
def test_the_chosen_head_decides_and_the_summary_names_it(checkpoint, logits, tmp_path, head):
    label, heads = logits
    summary = evaluated(checkpoint, tmp_path, f"loss.head={head}", "attack=fgsm")
    assert summary["head"] == head
    assert summary["clean"]["correct"] == int((heads[head].argmax(1) == label).sum())
    table = pq.read_table(tmp_path / "robustness" / "records.parquet").to_pydict()
    rows = zip(table["attack"], table["index"], table["prediction"], strict=True)
    told = [prediction for attack, _, prediction in sorted(rows) if attack == "clean"]
    assert told == heads[head].argmax(1).tolist()


def test_the_heads_differ_so_that_the_choice_can_be_seen(logits):
    _, heads = logits
    assert not torch.equal(heads["prototype"].argmax(1), heads["attention"].argmax(1))


def test_rows_of_one_head_are_not_continued_under_the_other(checkpoint):
    configs = [config_of("evaluate", f"checkpoint={checkpoint}", f"loss.head={h}") for h in ("prototype", "attention")]
    stored = Checkpoint.read(checkpoint).config
    contexts = []
    for config in configs:
        whole = with_stored(config, stored)
        contexts.append(assemble.evaluation_of(whole, checkpoint.parent, assemble.data_of(whole)).context)
    assert contexts[0] != contexts[1]


def test_the_released_attack_on_the_prototype_head_raises_both_cross_entropies(checkpoint, tmp_path):
    suite = assemble.attacks_of(config_of("train", "attack=accv2020_fr"), tuple("0123456789"))
    weak = assemble.attacks_of(config_of("train", "attack=accv2020"), tuple("0123456789"))
    assert suite.keys() == weak.keys()
    decisive, other = torch.randn(3, 10), torch.randn(3, 10)
    output, label = Output(logits=decisive, embedding=decisive, heads={"attention": other}), torch.tensor([0, 1, 2])
    for name, attack in suite.items():
        assert isinstance(attack.objective, Summed)
        expected = CrossEntropy()(decisive, label) + CrossEntropy()(other, label)
        torch.testing.assert_close(attack.objective(output, label), expected)
        assert attack.decision == weak[name].decision
        assert (attack.threat, attack.steps, attack.step) == (weak[name].threat, weak[name].steps, weak[name].step)
    assert OnHead(objective=CrossEntropy(), head="attention") in suite["pgd10_8"].objective.objectives
    summary = evaluated(checkpoint, tmp_path, "attack=accv2020_fr", "data.max_test_samples=20")
    assert summary["attacks"].keys() == suite.keys()
