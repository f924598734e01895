"""Kills a training again and again and holds what it leaves against one that ran through.

python benchmarks/kill_training.py FOLDER KILLS [OVERRIDES …], with FOLDER on another file system than TMPDIR, and
trainer=ddp trainer.accelerator=cpu trainer.devices=2 among the overrides for two ranks, of which the first, the other
or both are killed in turn.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

OPTIONS = (
    "experiment=smoke", "loss=softmax", "test=false", "callbacks=[default,ema]", "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=60", "trainer.enable_progress_bar=false",
)  # fmt: skip
ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def started(folder, name, *overrides):
    words = [*OPTIONS, f"output={folder}", f"run_name={name}", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "robustfg.train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def others(pid):
    """The ranks that a training has started."""
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "robustfg.train"], capture_output=True, text=True)
    return [*map(int, listed.stdout.split())]


def remaining(session):
    """Processes of a training that still live."""
    listed = subprocess.run(["ps", "-o", "stat=,pid=,args=", "-s", str(session)], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]


def struck(process, kill, number):
    """Sends a signal to a rank or to all of them. Returns whom it reached, and the exit codes that may follow."""
    ranks = others(process.pid)
    victim = ("all", "first", "other")[kill % 3] if ranks else "all"
    if victim == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if victim == "first" else ranks[0], number)
    dies = number == signal.SIGKILL and victim == "other"  # the first one ends by itself then
    return victim, {0, 1 if dies else ENDS[number], *([143] if victim == "other" else [])}


def content(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def main():
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    overrides, dice = sys.argv[3:], random.Random(0)
    whole = started(folder, "whole", *overrides)
    assert whole.wait() == 0, whole.stderr.read()
    places = {name: folder / "digits-softmax" / name for name in ("whole", "killed")}
    last = places["killed"] / "checkpoints" / "last.ckpt"
    for kill in range(kills):
        process = started(folder, "killed", *overrides)
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.4))
        number = list(ENDS)[kill // 3 % 3]  # each for all ranks, the first and another one
        victim, codes = struck(process, kill, number) if process.poll() is None else ("none", {0})
        began = time.monotonic()
        errors = process.communicate()[1]  # until the last rank has let go of it
        while remaining(process.pid):
            assert time.monotonic() - began < 60, remaining(process.pid)
            time.sleep(0.1)
        took = time.monotonic() - began
        files = sorted(path.name for path in last.parent.iterdir())
        steps = [content(path)["global_step"] for path in last.parent.glob("*.ckpt")]  # all can be read
        last_line = errors.strip().splitlines()[-1:]
        print(kill, number.name, victim, process.returncode, f"{took:.1f} s", files, steps, last_line, flush=True)
        assert process.returncode in codes
        if number == signal.SIGKILL and victim in ("first", "other"):
            assert "so all end" in last_line[0]
            assert "Traceback" not in errors
    assert started(folder, "killed", *overrides).wait() == 0
    assert (places["whole"] / "metrics.csv").read_text() == (places["killed"] / "metrics.csv").read_text()
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (content(place / "checkpoints" / name) for place in places.values())
        for key in ("state_dict", "current_model_state"):
            assert all(torch.equal(value, other[key][part]) for part, value in one[key].items()), (name, key)
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    print(f"{kills} kills: same weights, same best checkpoint, same rows")


if __name__ == "__main__":
    main()
