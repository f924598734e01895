import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import config_of, finished, run, start
from PIL import Image

from robustfg.checkpoint import Checkpoint
from robustfg.cli.assemble import data_of
from robustfg.detectors import threshold_at
from robustfg.train import train
from robustfg.training.continuing import LastCheckpoint

pytestmark = pytest.mark.process
shares_a_run = pytest.mark.xdist_group("trained run")
SAME = ("index", "label", "attack", "restart", "prediction", "correct", "first_success", "forwards", "backwards")
TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(outputs):
    done = run("train", "experiment=smoke", "loss=gm", "run_name=a", f"output={outputs}")
    assert done.returncode == 0, done.errors
    done.folder = outputs / "digits-gm" / "a"
    return done


def records(folder):
    return pq.read_table(folder / "robustness" / "records.parquet")


def counts(folder):
    summary = json.loads((folder / "robustness" / "summary.json").read_text())
    parts = {"clean": summary["clean"], **summary["attacks"], "worst": summary["worst_case"]}
    return {name: (part["correct"], part["n"]) for name, part in parts.items()}


@shares_a_run
def test_training_leaves_the_documented_files_and_prints_the_table(trained):
    expected = ["config.yaml", ".hydra/overrides.yaml", "provenance.json", "splits.json", "metrics.csv",
                "checkpoints/best.ckpt", "checkpoints/last.ckpt", "robustness/records.parquet",
                "robustness/summary.json", "robustness/report.html", "robustness/perturbations"]  # fmt: skip
    assert [name for name in expected if not (trained.folder / name).exists()] == []
    assert not list(trained.folder.rglob("unfinished-*")) + list(trained.folder.rglob("*.tmp"))
    assert "worst case" in trained.output
    assert "Verdict: upper bound, unverified" in trained.output  # eight samples verify nothing
    summary = json.loads((trained.folder / "robustness" / "summary.json").read_text())
    assert (summary["run"], summary["data"], summary["loss"], summary["n"]) == ("a", "digits", "gm", 61)
    splits = json.loads((trained.folder / "splits.json").read_text())
    assert not set(splits["train"]) & set(splits["val"])
    header = (trained.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"step", "epoch", "train/loss", "train/likelihood", "val/accuracy", "val/loss", "test/robust_accuracy"} <= {
        *header
    }


@shares_a_run
def test_checkpoints_hold_plain_containers_only(trained):
    content = torch.load(trained.folder / "checkpoints" / "best.ckpt", weights_only=True)
    json.dumps(content["robustfg"])
    assert Checkpoint.read(trained.folder / "checkpoints" / "last.ckpt").classes == tuple("0123456789")


@shares_a_run
@pytest.mark.parametrize(
    "options",
    [
        ["data.eval_batch_size=61"],
        ["data.eval_batch_size=7", *TWO],
    ],
    ids=["one process", "two gloo processes"],
)
def test_evaluation_gives_the_numbers_of_training_on_any_number_of_processes(trained, outputs, options, request):
    name = request.node.callspec.id.replace(" ", "-")
    checkpoint = trained.folder / "checkpoints" / "best.ckpt"
    done = run(
        "evaluate", f"checkpoint={checkpoint}", f"run_name={name}", f"output={outputs}", "evaluation.checks=8", *options
    )
    assert done.returncode == 0, done.errors
    folder = outputs / "evaluations" / name
    assert counts(folder) == counts(trained.folder)
    ours, theirs = records(folder), records(trained.folder)
    for column in SAME:
        assert ours[column].to_pylist() == theirs[column].to_pylist(), column
    summary = json.loads((folder / "robustness" / "summary.json").read_text())
    assert summary["world_size"] == (2 if "two" in name else 1)
    assert {check["name"]: check["status"] for check in summary["checks"]}["same_clean"] == "pass"


@pytest.fixture(scope="module")
def pictures(outputs):
    """A folder of images of nothing, in odd sizes."""
    folder = outputs / "pictures"
    folder.mkdir()
    for number in range(15):
        pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def watched(trained, outputs, pictures):
    """Folders of the same evaluation with detectors and unknown images, by one process and by two."""
    ways = {"watched-one": ["data.eval_batch_size=24"], "watched-two": ["data.eval_batch_size=7", *TWO]}
    for name, options in ways.items():
        done = run(
            "evaluate", f"checkpoint={trained.folder / 'checkpoints' / 'best.ckpt'}", f"run_name={name}",
            f"output={outputs}", "detector=[energy,mahalanobis]", "unknown=folder", f"unknown.folder.root={pictures}",
            "evaluation.checks=0", "evaluation.detection.steps=2", "evaluation.detection.queries=4", "attack=fgsm",
            "data.max_test_samples=24", *options,
        )  # fmt: skip
        assert done.returncode == 0, done.errors
        assert "Detectors at a false-positive rate of 5 %" in done.output
        assert "Unknown images" in done.output
    return [outputs / "evaluations" / name / "robustness" for name in ways]


def summaries(folders):
    return [json.loads((folder / "summary.json").read_text()) for folder in folders]


def close(one, two, column):
    pairs = zip(one[column].to_pylist(), two[column].to_pylist(), strict=True)
    return max(abs(a - b) / (1 + abs(a)) for a, b in pairs) < 1e-4


@shares_a_run
def test_detectors_are_judged_alike_on_one_and_two_processes(watched):
    """Rows of attacks that depend on the calibrated threshold included; scores agree to rounding."""
    one, two = (pq.read_table(folder / "records.parquet") for folder in watched)
    for column in ("index", "attack", "restart", "correct"):
        assert one[column].to_pylist() == two[column].to_pylist(), column
    assert close(one, two, "score/energy")
    assert close(one, two, "score/mahalanobis")
    told_one, told_two = (summary["detection"]["detectors"] for summary in summaries(watched))
    for name, told in told_one.items():
        for threat, part in told["threats"].items():
            assert part["joint"]["correct"] == told_two[name]["threats"][threat]["joint"]["correct"]


@shares_a_run
def test_unknown_images_are_judged_alike_on_one_and_two_processes(watched):
    one, two = (pq.read_table(folder / "unknown.parquet") for folder in watched)
    assert one["unknown"].to_pylist() == ["folder"] * 15
    assert one["index"].to_pylist() == two["index"].to_pylist() == list(range(15))
    assert one["prediction"].to_pylist() == two["prediction"].to_pylist()
    scores = [f"{kind}/{name}" for kind in ("score", "least") for name in ("energy", "mahalanobis")]
    assert [close(one, two, column) for column in scores] == [True] * 4
    told_one, told_two = (summary["unknown"]["folder"] for summary in summaries(watched))
    assert told_one["ids_sha256"] == told_two["ids_sha256"]
    for name, told in told_one["detectors"].items():
        for state, part in told.items():
            other = told_two["detectors"][name][state]
            assert part["auroc"] == other["auroc"]
            assert part["oscr"] == other["oscr"]
            for ours, theirs in zip(part["accepted"], other["accepted"], strict=True):
                assert ours["unknown_accepted"] == theirs["unknown_accepted"]


@shares_a_run
def test_predict_accepts_what_the_evaluation_would(trained, watched, tmp_path):
    """In processes of their own: train, evaluate, predict the same test images as files, by their ids."""
    checkpoint, fitted = trained.folder / "checkpoints" / "best.ckpt", watched[0] / "detectors.pt"
    evaluated = pq.read_table(watched[0] / "records.parquet").to_pylist()
    told = {row["index"]: row for row in evaluated if row["attack"] == "clean"}
    test = data_of(Checkpoint.read(checkpoint).config).source.test
    for index in told:
        Image.fromarray(test.image(index)).save(tmp_path / f"{index}.png")
    done = subprocess.run(
        [sys.executable, "-m", "robustfg.predict", f"checkpoint={checkpoint}", f"detectors={fitted}", "fpr=0.5",
         "format=json", "num_workers=0", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {int(Path(row["image"]).stem): row for row in map(json.loads, done.stdout.splitlines())}
    assert rows.keys() == told.keys()
    for name, scores in torch.load(fitted, weights_only=True)["calibration"].items():
        tau = threshold_at(scores, 0.5)
        for index, row in rows.items():
            assert row["class"] == str(told[index]["prediction"])
            assert row[f"score/{name}"] == pytest.approx(told[index][f"score/{name}"], rel=1e-4, abs=1e-4)
            assert row[f"accepted/{name}"] == (row[f"score/{name}"] <= tau)
        assert {row[f"accepted/{name}"] for row in rows.values()} == {True, False}


@shares_a_run
def test_with_a_fixed_batch_one_and_two_processes_find_the_same_perturbations_to_the_last_bit(trained, outputs):
    """Bits are compared through the l2 norm, a float64 sum over the whole perturbation, and what is stored of it."""
    engine = "evaluation.engine.fixed_batch=4"
    ways = {
        "fixed-one": ["data.eval_batch_size=61"],
        "fixed-two": ["data.eval_batch_size=7", *TWO],
    }
    found = []
    for name, options in ways.items():
        done = run("evaluate", f"checkpoint={trained.folder / 'checkpoints' / 'best.ckpt'}", f"run_name={name}",
                   f"output={outputs}", "evaluation.checks=0", "attack=pgd_l2", engine, *options)  # fmt: skip
        assert done.returncode == 0, done.errors
        folder = outputs / "evaluations" / name
        kept = pq.read_table(folder / "robustness" / "perturbations").sort_by("index")
        found.append((records(folder), kept))
    (one, kept_one), (two, kept_two) = found
    for column in (*SAME, "norm"):
        assert one[column].to_pylist() == two[column].to_pylist(), column
    assert len(set(one["norm"].to_pylist())) > 10
    assert kept_one["delta"].to_pylist() == kept_two["delta"].to_pylist()


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]


@shares_a_run
def test_page_needs_no_network(trained):
    links = Links()
    links.feed((trained.folder / "robustness" / "report.html").read_text())
    assert len(links.found) == 6  # bars, curves, gallery, latent picture, laws, reliability
    assert all(link.startswith("data:image/") for link in links.found)


def dom_of(page, profile, *options):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    return subprocess.run(
        ["chromium", *flags, *options, f"--user-data-dir={profile}", "--dump-dom", f"file://{page}"],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip


@shares_a_run
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_page_is_rendered_by_a_browser(trained, tmp_path):
    dom = dom_of(trained.folder / "robustness" / "report.html", tmp_path)
    assert "worst case" in dom
    assert "robustness of run a under attack=quick" in dom
    assert "python -m robustfg.train " in dom
    for correct, n in counts(trained.folder).values():
        assert f"{correct} / {n}" in dom


MEASURE = """<script>
const hidden = [...document.querySelectorAll("table, img")].filter(item => !item.closest(".scroll")).length;
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = `outside ${hidden}, too wide ${wide}`;
</script></body>"""


@shares_a_run
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_the_narrow_page_scrolls_inside_its_tables_and_figures_only(trained, tmp_path):
    page = tmp_path / "page.html"
    page.write_text((trained.folder / "robustness" / "report.html").read_text().replace("</body>", MEASURE))
    assert "<title>outside 0, too wide 0</title>" in dom_of(page, tmp_path, "--window-size=400,800")


@shares_a_run
def test_a_finished_run_given_again_is_only_evaluated(trained, outputs):
    before = weights(trained.folder)
    rows = records(trained.folder).drop(["seconds"])
    done = run("train", "experiment=smoke", "loss=gm", "run_name=a", f"output={outputs}")
    assert done.returncode == 0, done.errors
    assert "Continuing from" in done.output
    assert records(trained.folder).drop(["seconds"]).equals(rows)
    assert all(torch.equal(value, before[name]) for name, value in weights(trained.folder).items())


@shares_a_run
def test_a_run_name_is_not_shared_by_two_runs(trained, outputs):
    done = run("train", "experiment=smoke", "loss=gm", "loss.margin=0.7", "run_name=a", f"output={outputs}")
    assert done.returncode == 1
    assert done.errors.strip().splitlines()[-1].startswith("robustfg: run_name=a: ")
    assert "Traceback" not in done.errors


def waited_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


LONG = ("experiment=smoke", "loss=softmax", "test=false", "trainer.max_epochs=4")


def weights(folder):
    return Checkpoint.read(folder / "checkpoints" / "last.ckpt").state


def test_a_killed_training_continues_to_the_same_weights(tmp_path):
    assert run("train", *LONG, "run_name=whole", f"output={tmp_path}").returncode == 0
    process = start("train", *LONG, "run_name=killed", f"output={tmp_path}")
    waited_for(tmp_path / "digits-softmax" / "killed" / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGKILL)
    finished(process)
    assert process.returncode == -signal.SIGKILL
    done = run("train", *LONG, "run_name=killed", f"output={tmp_path}")
    assert done.returncode == 0, done.errors
    assert "Continuing from" in done.output
    whole, killed = (weights(tmp_path / "digits-softmax" / name) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    metrics = [(tmp_path / "digits-softmax" / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_training_leaves_a_checkpoint_that_can_be_continued(tmp_path, number, code):
    process = start(
        "train", *LONG, "trainer.max_epochs=500", "run_name=i", f"output={tmp_path}", "data.num_workers=1",
        "data.cache=false", start_new_session=True,
    )  # fmt: skip
    last = tmp_path / "digits-softmax" / "i" / "checkpoints" / "last.ckpt"
    waited_for(last, process)
    before = torch.load(last, weights_only=True)["global_step"]
    time.sleep(0.5)
    os.killpg(process.pid, number)  # the loader's process too, as a terminal and SLURM do it
    finished(process)
    assert process.returncode == code, process.errors
    assert process.errors.strip().splitlines()[-1].endswith("; the same command with run_name=i continues it")
    step = torch.load(last, weights_only=True)["global_step"]
    assert step > before
    assert f"last.ckpt holds step {step}" in process.output
    epochs = Checkpoint.read(last).epochs + 1
    done = run("train", *LONG, f"trainer.max_epochs={epochs}", "run_name=i", f"output={tmp_path}")
    assert done.returncode == 0, done.errors


def test_a_training_stopped_in_the_middle_of_an_epoch_continues_to_the_same_weights(tmp_path, monkeypatch):
    loading = ("data.num_workers=1", "data.cache=false")  # a loader process asks for its indices at once
    config = config_of("train", *LONG, "trainer.max_epochs=2", *loading)
    train(config, tmp_path / "whole", command=[])
    hook = LastCheckpoint._at_whole_place

    def stopping(self, trainer, **options):
        self.signals.told = 15 if trainer.global_step == 25 else None  # the eighth batch of the second epoch
        hook(self, trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_at_whole_place", stopping)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "stopped", command=[])
    assert torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 25
    train(config, tmp_path / "stopped", command=[])
    whole, stopped = (weights(tmp_path / name) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_all_processes_told_to_stop_leave_a_checkpoint_together(tmp_path):
    process = start(
        "train", *LONG, "trainer.max_epochs=500", "run_name=i", f"output={tmp_path}", "trainer=ddp",
        "trainer.accelerator=cpu", "trainer.devices=2", start_new_session=True,
    )  # fmt: skip
    last = tmp_path / "digits-softmax" / "i" / "checkpoints" / "last.ckpt"
    waited_for(last, process)
    before = torch.load(last, weights_only=True)["global_step"]
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    finished(process)
    assert process.returncode == 143, process.errors
    assert torch.load(last, weights_only=True)["global_step"] > before


def test_two_processes_train_adversarially_and_evaluate(tmp_path):
    done = run(
        "train", "experiment=smoke", "training=adversarial", "monitor=val/robust_accuracy", "run_name=ddp",
        f"output={tmp_path}", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1",
        "trainer.limit_train_batches=3", "evaluation.checks=4", "training.clean_epochs=0", "training.ramp_epochs=0",
    )  # fmt: skip
    assert done.returncode == 0, done.errors
    folder = tmp_path / "digits-softmax" / "ddp"
    table = records(folder)
    clean = [
        i for i, name in zip(table["index"].to_pylist(), table["attack"].to_pylist(), strict=True) if name == "clean"
    ]
    assert len(clean) == len(set(clean)) == 61
    assert "val/robust_accuracy" in (folder / "metrics.csv").read_text()


def test_a_sweep_runs_every_job_and_survives_a_bad_one(tmp_path):
    done = run("train", "-m", "experiment=smoke", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "test=false",
               "loss.label_smoothing=0.1,2,0.2", "run_name=s", f"output={tmp_path}")  # fmt: skip
    assert done.returncode == 1
    assert "loss.label_smoothing must be in [0, 1), got 2" in done.errors
    assert "Traceback" not in done.errors
    finished_jobs = sorted(path.parent.parent.name for path in tmp_path.rglob("last.ckpt"))
    assert finished_jobs == ["0-digits-softmax-s0", "2-digits-softmax-s0"]


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_dashboards_work_without_an_account(tmp_path, logger):
    offline = ["logger.wandb.offline=true"] if logger == "wandb" else []
    done = run("train", "experiment=smoke", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "test=false",
               f"logger={logger}", *offline, "run_name=l", f"output={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.errors
    folder = tmp_path / "digits-softmax" / "l"
    assert list(folder.glob("wandb/offline-run-*/*.wandb" if logger == "wandb" else "tensorboard/**/events.out*"))
    assert (folder / "metrics.csv").is_file()


def test_every_training_option_works_together(tmp_path):
    config = config_of(
        "train", "experiment=smoke", "loss=softmax", "callbacks=[default,ema,early_stopping]", "optimizer=adamw",
        "scheduler=multistep", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1",
        "trainer.limit_train_batches=2", "trainer.max_epochs=2", "training=adversarial", "training.clean_share=0.5",
        "training.clean_epochs=0", "training.ramp_epochs=0",
        "attack@training.attack=[fgsm,pgd7]", "monitor=val/robust_accuracy", "evaluation.checks=0", "attack=fgsm",
    )  # fmt: skip
    best = train(config, tmp_path, command=[])
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 <= best <= 1
    assert {"current_model_state", "averaging_state"} <= content.keys()
    averaged, current = content["state_dict"], content["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)


def test_averaged_weights_are_as_good_as_the_last_ones(tmp_path):
    quick = ("experiment=smoke", "loss=softmax", "test=false", "trainer.max_epochs=4")
    plain, averaged = (
        train(config_of("train", *quick, f"callbacks={callbacks}"), tmp_path / callbacks, command=[])
        for callbacks in ("default", "[default,ema]")
    )
    assert averaged > plain - 0.15
