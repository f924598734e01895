"""What is refused: before anything is written, in one line that names the option, with nothing left behind."""

import subprocess
import sys

import pytest
import torch
from commands import config_of
from outcomes import outcomes
from safetensors.torch import save_file

from robustfg.checkpoint import Checkpoint
from robustfg.cli import assemble, rehearsal
from robustfg.cli.config import build
from robustfg.cli.errors import run_plainly
from robustfg.core.errors import UserError

SMOKE = ("train", "experiment=smoke")
REFUSED = [
    ((*SMOKE, "output=null"), "output cannot be null; leave it out"),
    ((*SMOKE, "+trainer.val_check_interval=100000"), "trainer.val_check_interval=100000 does not fit into an epoch"),
    ((*SMOKE, "trainer.limit_train_batches=0.0001"), "trainer.limit_train_batches=0.0001 leaves none of 18 batches"),
    ((*SMOKE, "scheduler.warmup_epochs=50"), "scheduler.warmup_epochs=50 is longer than trainer.max_epochs=3"),
    ((*SMOKE, "logger=wandb"), "logger.wandb: no account is known here; run wandb login"),
    ((*SMOKE, "attack=transfer", "attack.transfer.surrogate=[1]"), "attack.transfer.surrogate must be the folder"),
    (("evaluate", "checkpoint=https://x.org/best.ckpt"), "checkpoint=https://x.org/best.ckpt: download it first"),
    (("evaluate", "checkpoint=."), "checkpoint=. is a folder; give a file"),
    (("predict", "checkpoint=nowhere.ckpt", "a.png"), "checkpoint=nowhere.ckpt: no such file"),
    (("predict", "checkpoint=nowhere.ckpt", "a.png", "to=nowhere/rows.csv"), "to=nowhere/rows.csv: No such file"),
]


@pytest.mark.process
def test_a_refused_command_says_why_in_one_line_and_leaves_nothing(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    for (words, told), done in zip(REFUSED, outcomes([words for words, _ in REFUSED]), strict=True):
        assert (done.status, done.left) == (1, []), (words, done)
        assert done.err.startswith(f"robustfg: {told}"), (words, done)
        assert done.err.count("\n") == 1, (words, done)


@pytest.mark.process
def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    piped = f"{sys.executable} -m robustfg.train --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_ctrl_c_before_anything_is_begun_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        run_plainly("train", interrupted)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "robustfg: interrupted\n"


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("a.ckpt", lambda path: path.write_text("<!DOCTYPE html>"), "is no checkpoint but a page"),
        ("b.ckpt", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        ("c.safetensors", lambda path: save_file({"a": torch.zeros(3)}, path), "model.weights takes"),
        ("d.pth", lambda path: torch.save({"a.weight": torch.zeros(3)}, path), "weights alone, which model.weights"),
        ("e.pt", lambda path: torch.save(torch.zeros(3), path), "was not written by robustfg.train"),
        ("f.ckpt", lambda path: path.write_bytes(b""), "is damaged or truncated"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told_for_what_it_is(tmp_path, name, write, told):
    write(path := tmp_path / name)
    with pytest.raises(UserError, match=told):
        Checkpoint.read(path)


# --- What a trainer would refuse later, or not at all


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"callbacks": [1]}, r"trainer\.callbacks cannot be set; choose them by callbacks=\[default,ema\]"),
        ({"limit_test_batches": 1}, r"trainer\.limit_test_batches cannot be set; set data\.max_test_samples"),
        ({"enable_checkpointing": False}, r"enable_checkpointing=false: last\.ckpt is always written"),
        ({"use_distributed_sampler": True}, r"use_distributed_sampler must be false"),
        ({"max_epochs": 0}, r"trainer\.max_epochs must be >= 1, got 0"),
        ({"max_steps": 0}, r"trainer\.max_steps must be >= 1, got 0"),
        ({"max_epochs": 3, "min_epochs": 4}, r"trainer\.min_epochs must be <= trainer\.max_epochs=3, got 4"),
        ({"max_epochs": 3, "check_val_every_n_epoch": 4}, r"check_val_every_n_epoch must be <= trainer\.max_epochs=3"),
        ({"gradient_clip_val": -1}, r"trainer\.gradient_clip_val must be >= 0, got -1"),
        ({"precision": "64-true"}, r"trainer\.precision must be 32-true, 16-mixed or bf16-mixed, got 64-true"),
    ],
)
def test_what_a_trainer_cannot_keep_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        rehearsal.refuse_unkept(given)
    rehearsal.refuse_unkept({"enable_checkpointing": True, "max_steps": -1, "max_epochs": 3, "min_epochs": 3})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optimizer.lr=0"], r"^optimizer\.lr must be > 0"),
        (["optimizer.momentum=1"], r"^optimizer\.momentum must be < 1"),
        (["training=adversarial", "trainer.max_epochs=10"], r"^training\.ramp_epochs=8 after 9 clean epochs ends"),
        (["training=adversarial", "trainer.max_epochs=9"], r"^training\.clean_epochs=9 leaves no epoch"),
        (["callbacks.checkpoint.mode=min"], r"^callbacks\.checkpoint\.mode=min keeps the worst val/accuracy"),
        (["callbacks.checkpoint.monitor=val/acc"], r"^callbacks\.checkpoint\.monitor must be one of"),
        (["callbacks.checkpoint.monitor=null"], r"^callbacks\.checkpoint\.monitor cannot be null"),
        (["callbacks.checkpoint.save_top_k=0"], r"^callbacks\.checkpoint\.save_top_k=0 keeps no best"),
        (["callbacks.checkpoint.filename=/x/y"], r"^callbacks\.checkpoint\.filename must be a name without /"),
        (["+trainer.limit_val_batches=0.1"], r"^trainer\.limit_val_batches=0\.1 leaves none of 1 batches"),
    ],
)
def test_what_would_end_a_training_later_is_refused_before_it(tmp_path, words, told):
    config = config_of("train", "experiment=smoke", "trainer.accelerator=cpu", *words)
    data = assemble.data_of(config)
    classifier = assemble.classifier_of(config, data.classes)
    trainer = assemble.trainer_of(config, tmp_path, assemble.callbacks_of(config), [])
    with pytest.raises(UserError, match=told):
        rehearsal.rehearse_training(trainer, classifier, data, None, config["monitor"])


@pytest.mark.parametrize(
    ("group", "words", "told"),
    [
        ("scheduler", ["scheduler=step", "scheduler.gamma=0"], r"^scheduler\.gamma must be > 0, got 0"),
        ("scheduler", ["scheduler=multistep", "scheduler.milestones=[5,-1]"], r"^scheduler\.milestones must be > 0"),
        ("scheduler", ["scheduler.final=-1"], r"^scheduler\.final must be in \[0, 1\], got -1"),
        ("detector.energy", ["detector=energy", "detector.energy.temperature=0"], r"^detector\.energy\.temperature"),
        ("model", ["model.smallest_map=0"], r"^model\.smallest_map must be >= 1"),
        ("model", ["model.resize=-1"], r"^model\.resize must be >= 1"),
    ],
)
def test_a_value_without_a_meaning_is_refused_by_its_constructor_and_named_by_its_place(group, words, told):
    node = config_of("train", *words)
    for key in group.split("."):
        node = node[key]
    with pytest.raises(UserError, match=told):
        build(node, group)


def test_a_phases_warm_up_ends_within_the_phase():
    words = ("loss=gm_class_means", "loss.phases.drawn.schedule.warmup_epochs=2")
    with pytest.raises(UserError, match=r"warmup_epochs=2 is longer than loss\.phases\.drawn\.epochs=1"):
        assemble.phases_of(config_of("train", *words)["loss"])


def test_an_account_is_needed_only_where_the_run_is_sent(monkeypatch, tmp_path):
    import wandb

    class Known:
        def __init__(self, **given):
            given = {"mode": "online", "api_key": None, "identity_token_file": None} | given
            self.settings = type("Settings", (), given | {"base_url": "https://api.wandb.ai"})

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(wandb, "setup", Known)
    with pytest.raises(UserError, match=r"^logger\.wandb: no account is known here"):
        rehearsal.refuse_unknown_account({"offline": False})
    rehearsal.refuse_unknown_account({"offline": True})
    for known in ({"mode": "offline"}, {"mode": "disabled"}, {"api_key": "k"}):
        monkeypatch.setattr(wandb, "setup", lambda known=known: Known(**known))
        rehearsal.refuse_unknown_account({})
    monkeypatch.setattr(wandb, "setup", Known)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    rehearsal.refuse_unknown_account({})
