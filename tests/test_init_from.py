"""Runs that start from the weights of another."""

import json
import shutil

import pytest
import torch
from commands import config_of

from robustfg.checkpoint import Checkpoint
from robustfg.cli.config import from_yaml
from robustfg.core.errors import UserError
from robustfg.evaluation.fingerprint import weights_sha256
from robustfg.train import train
from robustfg.training.continuing import LastCheckpoint

QUICK = ("experiment=smoke", "loss=softmax", "test=false", "trainer.max_epochs=1", "trainer.limit_train_batches=3")


def state(folder, name="last"):
    return Checkpoint.read(folder / "checkpoints" / f"{name}.ckpt").state


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    train(config_of("train", *QUICK, "seed=5"), folder, command=[])
    return folder / "checkpoints" / "best.ckpt"


def start(folder, checkpoint, *options):
    train(config_of("train", *QUICK, f"init_from={checkpoint}", *options), folder, command=[])


def test_all_weights_are_those_of_the_checkpoint_and_the_record_says_so(first, tmp_path):
    start(tmp_path, first, "optimizer.lr=1e-30", "trainer.limit_train_batches=1")
    given, found = Checkpoint.read(first).state, state(tmp_path)
    buffers = {name for name in given if "running_" in name or name.endswith("num_batches_tracked")}
    assert all(torch.equal(given[name], found[name]) for name in given.keys() - buffers)
    tracked = [name for name in buffers if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(given[name] == 3 and found[name] == 4 for name in tracked)
    module = torch.nn.Module()
    module.state_dict = lambda: given
    record = json.loads((tmp_path / "provenance.json").read_text())["init_from"]
    assert record == {"checkpoint": str(first.resolve()), "weights_sha256": weights_sha256(module)}
    assert from_yaml(tmp_path / "config.yaml")["init_from"] == str(first)
    assert Checkpoint.read(tmp_path / "checkpoints" / "last.ckpt").config["init_from"] == str(first)


def test_the_optimizer_the_schedule_and_the_epochs_begin_anew(first, tmp_path):
    start(tmp_path, first)
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (0, 3)
    assert content["lr_schedulers"][0]["last_epoch"] == 3


def test_without_it_nothing_is_recorded_or_loaded(first, tmp_path):
    train(config_of("train", *QUICK, "optimizer.lr=1e-30"), tmp_path, command=[])
    assert json.loads((tmp_path / "provenance.json").read_text())["init_from"] is None
    given, found = Checkpoint.read(first).state, state(tmp_path)
    assert any(not torch.equal(given[name], found[name]) for name in given if name.endswith("weight"))


def test_a_stopped_run_goes_on_from_its_own_weights_and_does_not_load_again(first, tmp_path, monkeypatch):
    checkpoint, options = (
        tmp_path / "best.ckpt",
        ("trainer.max_epochs=2", "training=adversarial", "training.clean_epochs=0", "training.ramp_epochs=0"),
    )
    shutil.copy(first, checkpoint)
    start(tmp_path / "whole", checkpoint, *options)
    hook = LastCheckpoint._at_whole_place

    def stopping(self, trainer, **options):
        self.signals.told = 15 if trainer.global_step == 2 else None
        hook(self, trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_at_whole_place", stopping)
        with pytest.raises(SystemExit):
            start(tmp_path / "stopped", checkpoint, *options)
    record = json.loads((tmp_path / "stopped" / "provenance.json").read_text())["init_from"]
    checkpoint.unlink()
    start(tmp_path / "stopped", checkpoint, *options)
    whole, stopped = state(tmp_path / "whole"), state(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert json.loads((tmp_path / "stopped" / "provenance.json").read_text())["init_from"] == record
    assert record["checkpoint"] == str(checkpoint)


def test_a_run_that_started_elsewhere_is_another_run(first, tmp_path):
    train(config_of("train", *QUICK), tmp_path, command=[])
    with pytest.raises(UserError, match="holds a run with another init_from"):
        start(tmp_path, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.options.channels=[8,16,16,24]"], r"init_from=.*best\.ckpt belongs to another architecture: backbone"
         r"\S+, \S+, \S+ and \d+ more of another shape; check model, loss and data\.image_size"),
        (["loss=gm"], r"init_from=.*: loss\.means missing; loss\.classifier\.bias, loss\.classifier\.weight unknown;"),
        (["model.pretrained=true"], r"init_from brings all weights; leave out model\.pretrained and model\.weights"),
        (["init_from=nowhere.ckpt"], r"init_from=nowhere\.ckpt: no such file"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(first, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        start(tmp_path, first, *options)
    assert not (tmp_path / "checkpoints").exists()


def test_weights_for_other_classes_are_refused(first, tmp_path):
    content = torch.load(first, weights_only=True)
    content["robustfg"]["classes"][3] = "drei"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"init_from=.*other\.ckpt was trained on 10; class 'drei' against '3'"):
        start(tmp_path, tmp_path / "other.ckpt")
