"""The commands on a GPU."""

import json
import math
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from commands import run
from PIL import Image

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.process,
    pytest.mark.xdist_group("runs on a GPU"),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def done(command, *overrides):
    process = run(command, *overrides)
    assert process.returncode == 0, process.errors
    return process


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("training", ["standard", "adversarial", "free", "trades"])
def test_training_and_its_evaluation_end_with_a_verdict(precision, training, outputs):
    name = f"{training}-{precision}"
    process = done(
        "train", "experiment=smoke", "loss=gm", f"training={training}", f"trainer.precision={precision}",
        f"run_name={name}", f"output={outputs}",
    )  # fmt: skip
    assert "Verdict:" in process.output
    provenance = json.loads((outputs / "digits-gm" / name / "provenance.json").read_text())
    assert torch.cuda.get_device_name() in json.dumps(provenance)


@pytest.fixture(scope="module")
def trained(outputs):
    done("train", "experiment=smoke", "loss=gm", "run_name=a", f"output={outputs}")
    return outputs / "digits-gm" / "a" / "checkpoints" / "best.ckpt"


def evaluated(trained, folder, accelerator, *overrides):
    done("evaluate", f"checkpoint={trained}", f"trainer.accelerator={accelerator}", f"output={folder}", *overrides)
    (records,) = folder.rglob("records.parquet")
    return {(row["attack"], row["restart"], row["index"]): row for row in pq.read_table(records).to_pylist()}


@pytest.mark.parametrize("attack", ["quick", "standard"])
def test_an_evaluation_breaks_whom_it_breaks_on_the_cpu(attack, trained, tmp_path):
    here, there = (
        evaluated(trained, tmp_path / kind, kind, f"attack={attack}", "data.max_test_samples=61")
        for kind in ("cpu", "gpu")
    )
    assert here.keys() == there.keys()
    different = [key for key in here if here[key]["correct"] != there[key]["correct"]]
    assert len(different) <= 0.01 * len(here)


def test_detectors_are_fitted_and_attacked_on_a_gpu_and_answer_alike_on_the_cpu(trained, tmp_path):
    rows = evaluated(trained, tmp_path, "gpu", "attack=quick", "data.max_test_samples=12", "detector=gm")
    assert all(math.isfinite(row["margin"]) for row in rows.values())
    for name, grey in (("a", 10), ("b", 200)):
        Image.new("RGB", (20, 20), (grey, grey, 0)).save(tmp_path / f"{name}.png")
    (detectors,) = tmp_path.rglob("detectors.pt")
    told = [
        subprocess.run(
            [sys.executable, "-m", "robustfg.predict", f"checkpoint={trained}", f"detectors={detectors}",
             f"device={device}", "format=json", tmp_path / "a.png", tmp_path / "b.png"],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert len(told[0]) == 2
    for here, there in zip(*(map(json.loads, lines) for lines in told), strict=True):
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert there[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
