"""Whose a run's folder is, and what is left in it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import pytorch_lightning as pl
import torch
from commands import config_of, obey_interrupts, run, start

from robustfg.cli import processes
from robustfg.cli.folder import CLAIM, claimed, refuse_another_request, refuse_held
from robustfg.cli.processes import default_name, refuse_impossible_devices, refuse_other_ranks
from robustfg.cli.session import stopped_plainly
from robustfg.core.errors import UserError
from robustfg.evaluate import evaluate
from robustfg.train import train

QUICK = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "evaluation.checks=0",
         "attack=fgsm")  # fmt: skip
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")

HOLD = """
import sys, time
from pathlib import Path
from robustfg.cli.folder import claimed
with claimed(Path(sys.argv[1]), ["robustfg.train"]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path):
    folder = tmp_path / "a" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    refusals = [lambda: refuse_held(folder), lambda: claimed(folder, []).__enter__()]
    for refused in refusals:
        with pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on .* since .*another run_name"):
            refused()
    holder.kill()
    holder.wait()
    assert (folder / CLAIM).exists()  # a dead process's claim
    refuse_held(folder)
    with claimed(folder, ["again"]):
        assert json.loads((folder / CLAIM).read_text())["command"] == ["again"]
    assert list(folder.iterdir()) == []


def ended_early(folder, error, *written):
    with claimed(folder, []):
        for name in written:
            (folder / name).write_text("")
        raise error


def test_what_ends_before_anything_is_computed_leaves_no_folder_and_takes_nothing_of_others(tmp_path):
    folder = tmp_path / "a" / "b" / "run"
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError):
        ended_early(folder, UserError("no"), "config.yaml", "splits.json")
    with pytest.raises(ValueError, match="of Lightning"):
        ended_early(folder, ValueError("of Lightning"), "config.yaml")
    with pytest.raises(KeyboardInterrupt):
        ended_early(folder, KeyboardInterrupt())
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    with pytest.raises(KeyboardInterrupt):
        ended_early(folder, KeyboardInterrupt(), "metrics.csv")
    assert (folder / "metrics.csv").exists()
    with pytest.raises(UserError):  # it was there before
        ended_early(folder, UserError("no"))
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", "is no folder"), ("file/below", "is no folder"), ("/proc/nothing/here", "cannot be written")],
)
def test_where_no_folder_can_be_the_place_is_named(tmp_path, place, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message), claimed(tmp_path / place, []):
        pass


def test_without_locks_a_claim_is_believed_unless_its_process_is_known_to_be_dead(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = os.uname().nodename
    for about, free in (({"host": host, "pid": dead.pid}, True), ({"host": host, "pid": os.getpid()}, False),
                        ({"host": "elsewhere", "pid": dead.pid}, False)):  # fmt: skip
        (tmp_path / CLAIM).write_text(json.dumps(about))
        if free:
            with claimed(tmp_path, []):
                pass
        else:
            with pytest.raises(UserError, match=r"or remove .*\.claim if it has ended"), claimed(tmp_path, []):
                pass


def test_a_name_given_twice_must_mean_the_same(tmp_path):
    """What was asked stands beside what is found, also where no checkpoint was written."""
    config = config_of("train", *QUICK)
    folder = tmp_path / "run"
    train(config, folder, command=[])
    written = (folder / "config.yaml").read_text()
    for options, part in ((["loss=gm"], "loss"), (["attack=quick"], "attack"), (["data.max_test_samples=9"], "data")):
        with pytest.raises(UserError, match=rf"run_name=r: .*holds .* with another {part}"):
            train(config_of("train", *QUICK, *options), folder, command=[])
    refuse_another_request(config_of("train", *QUICK, "data.num_workers=2"), folder, training=True)
    checkpoint = folder / "checkpoints" / "best.ckpt"
    place = tmp_path / "evaluation"
    options = (f"checkpoint={checkpoint}", "evaluation.checks=0", "attack=fgsm")
    evaluate(config_of("evaluate", *options), place, command=[])
    summary = (place / "robustness" / "summary.json").read_text()
    for other, part in ((["attack=quick"], "attack"), (["evaluation.gallery=1"], "evaluation"),
                        (["data.max_test_samples=9"], "data"), (["seed=1"], "seed"),
                        ([f"checkpoint={checkpoint.with_name('last.ckpt')}"], "checkpoint")):  # fmt: skip
        with pytest.raises(UserError, match=rf"run_name=r: .*holds an evaluation with another {part}"):
            evaluate(config_of("evaluate", *options, *other), place, command=[])
    assert (place / "robustness" / "summary.json").read_text() == summary
    for lost in checkpoint.parent.iterdir():
        lost.unlink()
    with pytest.raises(UserError, match="holds a run with another seed"):
        train(config_of("train", *QUICK, "seed=1"), folder, command=[])
    assert (folder / "config.yaml").read_text() == written
    (folder / "config.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match=r"config.yaml is damaged \(.*remove the folder or choose another run_name"):
        train(config, folder, command=[])


@pytest.fixture
def names(monkeypatch):
    for name in (*processes._RANKS, *processes._CLUSTERS, processes._NAME, "WORLD_SIZE", "TORCHELASTIC_RUN_ID",
                 "SLURM_NTASKS", "SLURM_STEP_ID"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)

    def given(**environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        default_name.cache_clear()
        return default_name()

    yield given
    default_name.cache_clear()
    os.environ.pop(processes._NAME, None)


def test_a_name_is_unique_to_a_command_and_the_same_on_all_its_ranks(names):
    drawn = [names() for _ in range(50)]
    assert len({*drawn}) == 50
    assert names(LOCAL_RANK="1") == drawn[-1]  # started by Lightning, which gives the environment on
    assert names(LOCAL_RANK="1", WORLD_SIZE="2", TORCHELASTIC_RUN_ID="x7") == "torchrun-x7"
    assert names(SLURM_NTASKS="2", SLURM_JOB_ID="9", SLURM_STEP_ID="1", SLURM_PROCID="1") == "slurm-9.1"


def test_ranks_without_a_name_in_common_need_a_run_name(names):
    with pytest.raises(UserError, match="set run_name="):
        names(WORLD_SIZE="2", TORCHELASTIC_RUN_ID="none")


@pytest.mark.parametrize(
    "options",
    [{"devices": 0}, {"devices": -1}, {"devices": [0, 1]}, {"devices": "two"}, {"devices": 1.5}, {"devices": True},
     {"devices": 99 * (os.cpu_count() or 1)}, {"devices": 1, "num_nodes": 2}],
    ids=str,
)  # fmt: skip
def test_devices_that_are_not_there_are_refused(options, names):
    option = "num_nodes" if "num_nodes" in options else "devices"
    with pytest.raises(UserError, match=f"trainer.{option}="):
        refuse_impossible_devices({"accelerator": "cpu", "num_nodes": 1} | options)
    refuse_impossible_devices({"accelerator": "cpu", "num_nodes": 1, "devices": "2"})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without accelerator")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no GPU is found here"):
        refuse_impossible_devices({"accelerator": "gpu", "num_nodes": 1, "devices": 1})


TASK = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "j", "SLURM_STEP_ID": "0"}  # fmt: skip
TWO_TASKS = TASK | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        (TASK, {"devices": 2}, "trainer.devices=2 .* ask for 2 processes, but SLURM has started 1; .*SLURM_JOB_NAME"),
        (TASK, {"devices": 2, "strategy": "ddp_spawn"}, "inside those of SLURM; set trainer.strategy=ddp"),
        (TWO_TASKS, {"devices": 1}, "ask for 1 processes, but SLURM has started 2"),
        (TWO_TASKS | {"SLURM_STEP_ID": None}, {"devices": 2}, "begin the command with srun"),
        (ELASTIC, {"devices": 1}, "ask for 1 processes, but torchrun has started 2"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, {"devices": 2}, "but the environment has started 4"),
        (TASK, {"devices": 1}, None),
        (TASK | {"SLURM_JOB_NAME": "bash"}, {"devices": 2}, None),
        (TWO_TASKS, {"devices": 2}, None),
        (ELASTIC, {"devices": 2}, None),
        ({}, {"devices": 2, "strategy": "ddp_spawn"}, None),
    ],
)
def test_ranks_started_from_outside_must_be_those_that_the_trainer_counts_on(
    names, monkeypatch, environment, options, message
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value) if value is not None else monkeypatch.delenv(key, raising=False)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    if message is None:
        refuse_other_ranks(trainer)
    else:
        with pytest.raises(UserError, match=message):
            refuse_other_ranks(trainer)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """The environment of a SLURM task, and a file with what was asked of scontrol."""
    program, asked = tmp_path / "bin" / "scontrol", tmp_path / "asked"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nif [ -n "$REFUSED" ]; then echo no >&2; exit 1; fi\n')
    program.chmod(0o755)
    for key, value in (TASK | {"PATH": f"{program.parent}:{os.environ['PATH']}"}).items():
        monkeypatch.setenv(key, value)
    return asked


def told_as_trainer_test_is(trainer, number):
    """With Lightning's own handlers registered."""
    trainer._signal_connector.register_signal_handlers()
    try:
        signal.raise_signal(number)
    finally:
        trainer._signal_connector.teardown()


def test_slurms_signal_ends_an_evaluation_and_requeues_a_job_that_can_be_continued(names, scontrol, monkeypatch, capfd):
    def said(run_name):
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        with pytest.raises(SystemExit) as stop, stopped_plainly({"run_name": run_name}, trainer, "ADVICE"):
            told_as_trainer_test_is(trainer, signal.SIGUSR1)
        assert stop.value.code == 143
        return [line for line in capfd.readouterr().err.splitlines() if line.startswith("robustfg: ")]

    before = signal.getsignal(signal.SIGUSR1)
    assert said("given") == ["robustfg: stopped; ADVICE", "robustfg: the SLURM job is back in its queue"]
    monkeypatch.setenv("REFUSED", "1")
    assert said("given")[1] == "robustfg: scontrol requeue 77 failed (no); give the job again"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    said("given")
    assert scontrol.read_text().split("\n")[:3] == ["requeue 77", "requeue 77", "requeue 70_7"]
    assert "without run_name=… it would begin a run anew" in said(names())[1]
    assert len(scontrol.read_text().splitlines()) == 3
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.process
def test_slurms_signal_ends_training_where_it_is_whole_and_requeues_the_job(scontrol, tmp_path):
    process = start("train", *QUICK, "test=false", "trainer.max_epochs=10000", "run_name=r", f"output={tmp_path}")
    last = tmp_path / "digits-softmax" / "r" / "checkpoints" / "last.ckpt"
    waited_for(last, process)
    process.send_signal(signal.SIGUSR1)
    output, errors = process.communicate()
    assert process.returncode == 143, errors
    step = torch.load(last, weights_only=True)["global_step"]
    assert output.splitlines()[-1].endswith(f"last.ckpt holds step {step}")
    assert errors.splitlines()[-1] == "robustfg: the SLURM job is back in its queue"
    assert scontrol.read_text() == "requeue 77\n"
    assert sorted(path.name for path in last.parents[1].iterdir() if "ckpt" in path.name) == []


@pytest.mark.process
def test_refused_commands_leave_nothing_and_commands_at_once_get_folders_of_their_own(tmp_path):
    """Mistakes that show while composing, while building, and in the trainer; jobs of a multirun too."""
    mistakes = [
        ("train", "+typo=1"), ("train", *QUICK, "optimizer.lr=-1"), ("train", *QUICK, *TWO[:1], "trainer.devices=999"),
        ("train", "-m", *QUICK, "optimizer.lr=-1,-2"), ("evaluate", "model.name=resnet18"),
    ]  # fmt: skip
    for words in mistakes:
        done = run(*words, f"output={tmp_path / 'out'}", cwd=tmp_path)
        assert done.returncode == 1, words
        assert "Traceback" not in done.errors
        assert list(tmp_path.rglob("*")) == [], words
    started = [start("train", *QUICK, "test=false", f"output={tmp_path}", cwd=tmp_path) for _ in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert len(list(tmp_path.glob("digits-softmax/*/checkpoints/last.ckpt"))) == 2


def waited_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def ranks(pid):
    """Processes that a command has started for ranks of its own."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "robustfg|spawn_main"], capture_output=True, text=True)
    return [*map(int, listed.stdout.split())]


@pytest.mark.process
@pytest.mark.parametrize(("strategy", "victim"), [("ddp", "first"), ("ddp", "other"), ("ddp_spawn", "other")])
def test_where_a_rank_dies_all_end_with_a_clear_last_line_and_the_folder_can_be_continued(tmp_path, strategy, victim):
    """In an evaluation, whose ranks do not wait for each other; no other command gets in while it runs."""
    train(config_of("train", *QUICK, "test=false"), tmp_path / "run", command=[])
    options = (f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}", "attack=pgd", "evaluation.checks=0",
               "attack.pgd.steps=1000000", "run_name=e", f"output={tmp_path}", *TWO,
               f"trainer.strategy={strategy}")  # fmt: skip
    process = start("evaluate", *options, start_new_session=True)
    folder = tmp_path / "evaluations" / "e"
    waited_for(folder / "robustness" / "unfinished-00001.sqlite", process)
    if victim == "first":
        again = run("evaluate", *options)
        assert again.returncode == 1
        assert again.errors.splitlines()[-1].startswith(f"robustfg: {folder} is in use by process {process.pid}")
    started = ranks(process.pid)
    assert started
    os.kill(process.pid if victim == "first" else started[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)  # until the last rank has let go of the streams
    assert process.returncode == (-signal.SIGKILL if victim == "first" else 1)
    last = errors.strip().splitlines()[-1]
    assert "so all end; what is done is kept in" in last
    assert "Traceback" not in errors
    refuse_held(folder)


@pytest.mark.process
def test_a_log_gets_lines_and_an_interrupted_evaluation_says_what_is_kept(tmp_path):
    train(config_of("train", *QUICK, "test=false"), tmp_path / "run", command=[])
    words = (
        f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}", "evaluation.checks=0", "run_name=e",
        "attack=[fgsm,pgd]", "data.eval_batch_size=20", "attack.pgd.steps=1000000", f"output={tmp_path}",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "robustfg.evaluate", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=obey_interrupts,
    )  # fmt: skip
    folder = tmp_path / "evaluations" / "e"
    lines = []
    while not lines or not lines[-1].startswith("fgsm, batch 1/4: "):
        lines.append(process.stdout.readline())
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == (
        f"robustfg: interrupted; what is done is kept in {folder}; the same command with run_name=e continues it"
    )
    assert "% after 0:00:" in lines[-1]
    assert "\r" not in "".join([*lines, output, errors])
