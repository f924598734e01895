import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from commands import config_of, finished, run, start

from robustfg.checkpoint import Checkpoint
from robustfg.cli.assemble import classifier_of
from robustfg.core.errors import UserError
from robustfg.training import Step

WARM = "+loss.phases.warm={_target_:robustfg.training.Phase,epochs:5,lr:{backbone:null}}"
JOINT = (
    "+loss.phases.joint={_target_:robustfg.training.Phase,epochs:7,"
    "schedule:{_target_:robustfg.training.Step,every:3},weight_decay:{head:0}}"
)


def test_a_loss_brings_its_phases_and_they_give_the_run_its_length():
    config = config_of("train", WARM, JOINT)
    assert config["trainer"]["max_epochs"] == 12
    plan = classifier_of(config, ("a", "b")).phases
    assert [(phase.name, phase.epochs) for phase in plan.phases] == [("warm", 5), ("joint", 7)]
    assert plan.phases[0].freezes("backbone")
    assert plan.phases[1].schedule == Step(every=3)


def test_phases_can_be_changed_left_out_and_stretched():
    assert config_of("train", WARM, JOINT, "loss.phases.warm.epochs=3")["trainer"]["max_epochs"] == 10
    assert config_of("train", WARM, JOINT, "trainer.max_epochs=4")["trainer"]["max_epochs"] == 4
    config = config_of("train", WARM, JOINT, "loss.phases.warm=null", "training=adversarial")
    assert config["trainer"]["max_epochs"] == 7
    assert [phase.name for phase in classifier_of(config, ("a", "b")).phases.phases] == ["joint"]
    config = config_of("train", WARM, "loss.phases=null", "training=adversarial")
    assert config["trainer"]["max_epochs"] == 26
    assert classifier_of(config, ("a", "b")).phases is None


def test_a_phase_can_take_the_schedule_of_the_run():
    own = "+loss.phases.all={_target_:robustfg.training.Phase,epochs:9,schedule:${scheduler}}"
    (phase,) = classifier_of(config_of("train", own, "scheduler=step"), ("a", "b")).phases.phases
    assert phase.schedule == Step(every=10)


def test_what_a_phase_does_not_know_is_refused_by_name():
    with pytest.raises(UserError, match=r"loss\.phases\.warm\.lr\.prototypes: unknown; known are backbone, head"):
        classifier_of(config_of("train", WARM, "+loss.phases.warm.lr.prototypes=0.1"), ("a", "b"))
    with pytest.raises(UserError, match=r"no option loss\.phases\.warm\.typo"):
        classifier_of(config_of("train", WARM, "+loss.phases.warm.typo=1"), ("a", "b"))


MEANS = """\
_target_: small_phases.Means
dropout: 0.3
phases:
  warm:
    _target_: robustfg.training.Phase
    epochs: 2
    lr: {backbone: null, last: null, means: 0.05}
  joint:
    _target_: robustfg.training.Phase
    epochs: 2
    lr: {last: 0}
  last:
    _target_: robustfg.training.Phase
    epochs: 2
    lr: {backbone: 0, means: 0, last: 0.001}
    surveys: [means]
    fresh_optimizer: true
"""


def words(folder, name, *more):
    (folder / "conf" / "loss").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "loss" / "means.yaml").write_text(MEANS)
    return ("train", "--config-dir", folder / "conf", "experiment=smoke", "loss=means", "test=false",
            f"run_name={name}", f"output={folder}", *more)  # fmt: skip


HERE = Path(__file__).parent
IMPORTABLE = {"PYTHONPATH": os.pathsep.join([str(HERE / "training"), str(HERE), str(HERE.parent)])}


def epoch_of(last):
    return torch.load(last, weights_only=True)["epoch"] if last.exists() else -1


@pytest.mark.process
@pytest.mark.parametrize("seconds", [0, 0.3])
def test_a_training_killed_about_a_survey_continues_to_the_same_weights_and_log(tmp_path, seconds):
    done = run(*words(tmp_path, "whole"), **IMPORTABLE)
    assert done.returncode == 0, done.errors
    process = start(*words(tmp_path, "killed"), **IMPORTABLE)
    last = tmp_path / "digits-means" / "killed" / "checkpoints" / "last.ckpt"
    while epoch_of(last) < 1:  # the survey comes before the third of three epochs
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    finished(process)
    done = run(*words(tmp_path, "killed"), **IMPORTABLE)
    assert done.returncode == 0, done.errors
    assert "Continuing from" in done.output
    whole, killed = (
        Checkpoint.read(tmp_path / "digits-means" / name / "checkpoints" / "last.ckpt").state
        for name in ("whole", "killed")
    )
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    metrics = [(tmp_path / "digits-means" / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]
    assert "survey/means/samples" in metrics[0]
    best = torch.load(last.with_name("best.ckpt"), weights_only=True)
    assert best["epoch"] == 2  # of the last phase


@pytest.mark.process
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "auto"])
def test_phases_that_freeze_work_with_every_way_to_start_processes(tmp_path, strategy):
    done = run(*words(tmp_path, "r", f"trainer.strategy={strategy}", "trainer.accelerator=cpu", "trainer.devices=2",
                      "trainer.limit_train_batches=3"), **IMPORTABLE)  # fmt: skip
    assert done.returncode == 0, done.errors
    assert epoch_of(tmp_path / "digits-means" / "r" / "checkpoints" / "last.ckpt") == 2


@pytest.mark.process
def test_two_processes_prune_prototypes_and_train_on(tmp_path):
    done = run(
        "train", "experiment=smoke", "loss=protopnet", "optimizer=adam", "test=false", "trainer.max_epochs=6",
        "trainer.limit_train_batches=4", "loss.prototypes_per_class=4", "loss.phases.joint.lr.backbone=1e-2",
        "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp",
        "run_name=a", f"output={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.errors
    folder = tmp_path / "digits-protopnet" / "a"
    with (folder / "metrics.csv").open() as file:
        left = [row["survey/prune/prototypes"] for row in csv.DictReader(file) if row["survey/prune/prototypes"]]
    state = Checkpoint.read(folder / "checkpoints" / "last.ckpt").state
    vectors, weight = (state[f"loss.prototype.{name}"] for name in ("prototypes.vectors", "last_layer.weight"))
    assert len(left) == 1
    assert len(vectors) == weight.shape[1] == int(float(left[0])) < 40
