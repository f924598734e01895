"""Kills a training again and again and holds what it leaves against one that ran through.

python benchmarks/kill_training.py FOLDER [KILLS] [OVERRIDES …], with FOLDER on another file system than TMPDIR, and
trainer=ddp trainer.accelerator=cpu trainer.devices=2 among the overrides for two ranks.
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
        number = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if process.poll() is None:
            os.killpg(process.pid, number)
        errors = process.communicate()[1]
        files = sorted(path.name for path in last.parent.iterdir())
        steps = [content(path)["global_step"] for path in last.parent.glob("*.ckpt")]  # all can be read
        print(kill, number.name, process.returncode, files, steps, errors.strip().splitlines()[-1:], flush=True)
        assert process.returncode in (ENDS[number], 0)
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
