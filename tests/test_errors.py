"""What bad input gets: one message that names the option or the file."""

import contextlib
import os
import pty
import subprocess
import sys
import termios

import numpy as np
import pytest
import torch
from commands import config_of, run
from PIL import Image

from robustfg.checkpoint import Checkpoint
from robustfg.cli.config import CONF, build
from robustfg.core.errors import UserError
from robustfg.evaluate import evaluate
from robustfg.train import train

QUICK = (
    "experiment=smoke",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "evaluation.checks=0",
    "attack=fgsm",
)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], r"data.root is not set; it must name a folder like root/<class>"),
        (["data=folder", "data.root=/nowhere"], r"data.root=/nowhere: no such folder; expected root/<class>"),
        (["data=mnist", "data.root=/nowhere"], r"data.root=/nowhere: train-images.*data.download=true"),
        (["data=cifar10", "data.root=/nowhere"], r"data.root=/nowhere: cifar-10-batches-py is missing"),
        (["epsilon=-8/255"], r"epsilon must be >= 0, got -8/255"),
        (["epsilon=eight"], r"epsilon must be a number such as 8/255"),
        (["attack.fgsm.steps=0"], r"steps must be >= 1, got 0"),
        (["model.name=resnet1"], r"model.name=resnet1 is no timm model; close names: .*resnet18"),
        (["model.weights=/nowhere.pth"], r"model.weights=/nowhere.pth: no such file"),
        (["+model.typo=1"], r"no option model.typo"),
        (["trainer.strategy=nope"], r"trainer: .*nope"),
        (["data.val_fraction=0"], r"data.val_fraction must be in \(0, 1\), got 0"),
        (["training=adversarial", "training.clean_share=1"], r"training.clean_share must be in \[0, 1\), got 1"),
        (["monitor=val/loss"], r"monitor must be val/accuracy or val/robust_accuracy, got val/loss"),
        (["optimizer.lr=-1"], r"optimizer: .*-1"),
        (["seed=-1"], r"seed must be in \[0, 2\^32\), got -1"),
        (["trainer.max_epochs=-1"], r"trainer.max_epochs must be >= 1"),
        (["evaluation.split=tset"], r"evaluation.split must be test or val, got tset"),
        (["training=mcat"], r"training=mcat needs a loss that decides by distance"),
        (["training=mcat", "loss=maxsep"], r"training=mcat needs a loss that decides by distance"),
        (["loss=gm", "loss.embedding_dim=0"], r"loss.embedding_dim must be >= 1 or null, got 0"),
        (["+attack.clean.steps=1"], r"attack.clean: choose another name"),
        (["optimizer.lr=1e30", "trainer.limit_train_batches=null", "trainer.max_epochs=3"], r"loss is not finite"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_user_mistakes_are_named(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(config_of("train", *QUICK, *overrides), tmp_path, command=[])


def test_a_run_cannot_be_continued_with_fewer_epochs_than_it_has_had(tmp_path):
    train(config_of("train", *QUICK, "trainer.max_epochs=3", "test=false"), tmp_path, command=[])
    written = (tmp_path / "config.yaml").read_text()
    for epochs in (1, 2):
        with pytest.raises(
            UserError, match="run_name=r has been trained for 3 epochs; set trainer.max_epochs >= 3, or"
        ):
            train(config_of("train", *QUICK, f"trainer.max_epochs={epochs}"), tmp_path, command=[])
    assert (tmp_path / "config.yaml").read_text() == written
    train(config_of("train", *QUICK, "trainer.max_epochs=3", "test=false"), tmp_path, command=[])


def test_a_regime_that_cannot_train_the_loss_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="training=mcat needs a loss"):
        train(config_of("train", "training=mcat", "data=digits"), tmp_path / "run", command=[])
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_a_message_that_ends_training_begins_on_a_line_of_its_own(tmp_path):
    """On a terminal, which shows bars."""
    words = ("experiment=smoke", "optimizer.lr=1e30", "trainer.max_epochs=3", f"output={tmp_path}")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # bars have no width otherwise
    process = subprocess.Popen([sys.executable, "-m", "robustfg.train", *words], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of what a terminal shows
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 1
    assert b"Epoch 0" in shown  # the bar was shown
    assert b"\nrobustfg: training stopped in epoch" in shown


WITH_EMBEDDING = sorted(path.stem for path in (CONF / "loss").glob("*.yaml") if "\nembedding_dim:" in path.read_text())


@pytest.mark.parametrize("loss", [*WITH_EMBEDDING, "gm_class_means"])
@pytest.mark.parametrize("dim", [0, -1])
def test_an_embedding_without_dimensions_is_refused_by_every_loss(loss, dim):
    node = config_of("train", f"loss={loss}", f"loss.embedding_dim={dim}")["loss"] | {"phases": None}
    del node["phases"]
    with pytest.raises(UserError, match=rf"loss.embedding_dim must be >= 1 or null, got {dim}"):
        build(node, "loss", channels=4, num_classes=3)


def test_options_of_a_source_are_named(tmp_path):
    config = config_of("train", "data.source.difficulty=2")
    with pytest.raises(UserError, match=r"data.source.difficulty must be in \[0, 1\], got 2"):
        train(config, tmp_path, command=[])


def test_pretrained_without_network_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded.*timm/resnet18.*model.weights=/path/to"):
        train(config_of("train", *QUICK, "model=resnet18", "model.pretrained=true"), tmp_path, command=[])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config_of("train", *QUICK, "test=false"), folder, command=[])
    return folder / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=resnet50"], r"model.name=resnet50, but checkpoint=.*best.ckpt holds resnet18"),
        (["loss=gm"], r"loss cannot be chosen for a checkpoint"),
        (["model.weights=/x.pth"], r"model.weights and model.pretrained cannot be set for a checkpoint"),
        (["loss.head=attention"], r"loss.head=attention, but the checkpoint's loss .* has one head only"),
        (["+loss.margin=1"], r"loss.margin cannot be set for a checkpoint; only loss.head can"),
        (["data=digits"], r"data.image_size=24, but .* trained on 16; add data.image_size=16"),
        (["data.root=/x"], r"data.root is no option of the data this checkpoint was trained on"),
    ],
)
def test_what_does_not_fit_a_checkpoint_is_named(checkpoint, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        evaluate(config_of("evaluate", f"checkpoint={checkpoint}", *overrides), tmp_path, command=[])


def test_data_with_other_classes_than_the_checkpoints_is_named(checkpoint, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / "data" / name / f"{i}.png")
    other = ("data=folder", f"data.root={tmp_path / 'data'}", "data.image_size=16")
    with pytest.raises(UserError, match=r"data has 2 classes and .*best.ckpt was trained on 10; class '0' against 'a'"):
        evaluate(config_of("evaluate", f"checkpoint={checkpoint}", *other), tmp_path, command=[])


def test_evaluate_needs_a_checkpoint_or_a_model(tmp_path):
    with pytest.raises(UserError, match=r"set checkpoint=…, or model.name=…"):
        evaluate(config_of("evaluate", "data=digits"), tmp_path, command=[])
    with pytest.raises(UserError, match="data is not chosen"):
        evaluate(config_of("evaluate", "model.name=resnet18"), tmp_path, command=[])


def test_a_checkpoint_that_names_foreign_code_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["robustfg"]["config"]["loss"] = {"_target_": "os.system", "command": "touch stolen"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="the checkpoint names os.system"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path / 'evil.ckpt'}"), tmp_path, command=[])


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    quick = ("experiment=smoke", "test=false", "trainer.limit_train_batches=4", "scheduler=step", "scheduler.every=1")
    config = config_of("train", *quick, "scheduler.gamma=1e30", "trainer.max_epochs=3", "optimizer.lr=0.01")
    with pytest.raises(UserError, match="last good checkpoint is kept; lower optimizer.lr"):
        train(config, tmp_path, command=[])
    state = Checkpoint.read(tmp_path / "checkpoints" / "last.ckpt").state
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_published_classifier_is_evaluated_untrained(tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10, pretrained=False)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    config = config_of(
        "evaluate", "data=digits", "data.max_test_samples=20", "data.image_size=32", "model.name=test_resnet",
        f"model.weights={tmp_path / 'w.pth'}", "attack=fgsm", "evaluation.checks=0",
    )  # fmt: skip
    robust = evaluate(config, tmp_path / "out", command=[])
    assert 0 <= robust <= 1
    with pytest.raises(UserError, match="model.name=test_resnet without weights is random"):
        evaluate(config_of("evaluate", "data=digits", "model.name=test_resnet"), tmp_path / "o2", command=[])


def test_a_corrupt_image_ends_the_command_with_its_path_and_no_traceback(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i:02d}.png")
    broken = tmp_path / "data" / "b" / "07.png"
    broken.write_bytes(broken.read_bytes()[:100])
    done = run(
        "train", "data=folder", f"data.root={tmp_path / 'data'}", "data.image_size=32", "data.num_workers=1",
        "data.batch_size=4", "trainer.max_epochs=1", f"output={tmp_path}", "data.source.test_fraction=0.5",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.errors.strip().splitlines()[-1].startswith(f"robustfg: cannot read the image {broken}")
    assert "Traceback" not in done.errors
