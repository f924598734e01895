import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import warm
from commands import config_of
from hydra import compose, initialize_config_dir
from PIL import Image

from robustfg.checkpoint import Checkpoint
from robustfg.cli.assemble import data_of, detectors_of, fit_square_of, restored_of
from robustfg.cli.config import CONF, plain
from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors import Detector
from robustfg.detectors.fitted import Fitted
from robustfg.evaluation.fingerprint import weights_sha256
from robustfg.predict import ADVICE, load, predict, split
from robustfg.prediction import Predictor, Row, Tally, images_in
from robustfg.train import train

HERE = Path(__file__).parent
shares_a_checkpoint = pytest.mark.xdist_group("predicted")
pytestmark = shares_a_checkpoint


def photo(path, seed, size=(30, 22), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder data set of odd sizes: every kind of file that an evaluation can read."""
    root = tmp_path_factory.mktemp("data")
    turned = Image.Exif()
    turned[0x0112] = 6
    for label, name in enumerate(("finch", "wren")):
        for number in range(6):
            photo(root / name / f"{number}.png", 10 * label + number, size=(30 + number, 22))
        photo(root / name / "grey.jpg", 100 + label, mode="L")
        photo(root / name / "inks.jpg", 110 + label, mode="CMYK")
        photo(root / name / "turned.jpg", 120 + label, exif=turned)
    return root


@pytest.fixture(scope="module")
def checkpoint(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "run"
    config = config_of(
        "train", "data=folder", f"data.root={tree}", "data.image_size=16", "data.source.test_fraction=0.5",
        "data.num_workers=0", "data.val_fraction=0.3", "data.batch_size=4", "data.eval_batch_size=5",
        "data.crop_ratio=0.7", "model.options.channels=[8,8,8,8]", "loss=gm", "test=false", "trainer.max_epochs=1",
    )  # fmt: skip
    train(config, folder, command=[])
    return folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def expected(tree, checkpoint):
    """Logits and the loss's anomaly score of every image, by the loader of an evaluation, one at a time."""
    stored = Checkpoint.read(checkpoint)
    node = stored.config["data"] | {"eval_batch_size": 1}
    node["source"] = node["source"] | {"test_fraction": 1}
    data = data_of({"data": node})
    classifier = restored_of(stored, ())
    keys, found = data.keys("test"), {}
    with torch.no_grad():
        for batch in data.test_dataloader():
            output = classifier(batch.image)
            path = str(tree / keys[int(batch.index)])
            found[path] = (output.logits[0], classifier.anomaly(output).item())
    assert len(found) == 18
    assert len({round(anomaly, 4) for _, anomaly in found.values()}) > 12  # so that a mistaken order shows
    return found


def run(*words, given="", cwd=None):
    environment = {"PYTHONPATH": str(HERE)}
    return warm.run("robustfg.predict", *map(str, words), given=given, cwd=cwd, environment=environment)


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("predict", overrides=["num_workers=0", *map(str, overrides)]))


def written(capsys, names, *overrides):
    """Exit status, what came on stdout, and what on stderr."""
    status = predict(config(*overrides), [str(name) for name in names])
    return status, *capsys.readouterr()


@pytest.mark.process
def test_a_folder_gives_the_answers_of_an_evaluation_in_order_as_json_lines(tree, checkpoint, expected, tmp_path):
    done = run(f"checkpoint={checkpoint}", tree, "top=2", "batch_size=4", "num_workers=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == sorted(expected)
    for row in rows:
        logits, anomaly = expected[row["image"]]
        probabilities = logits.softmax(0).tolist()
        best = int(np.argmax(probabilities))
        assert (row["class"], row["class_2"]) == (("finch", "wren")[best], ("finch", "wren")[1 - best])
        assert row["probability"] == pytest.approx(probabilities[best], abs=1e-5)
        assert row["probability_2"] == pytest.approx(probabilities[1 - best], abs=1e-5)
        assert row["score/anomaly"] == pytest.approx(anomaly, rel=1e-4)
        assert (row["accepted/anomaly"], row["error"]) == (None, None)
    assert "18 images classified, 0 failed" in done.stderr
    assert "robustfg.evaluate checkpoint=… detector=" in done.stderr
    assert not list(tmp_path.iterdir())


def test_stretched_images_are_stretched_as_the_data_module_does(checkpoint):
    node = Checkpoint.read(checkpoint).config["data"] | {"keep_aspect": False}
    image = torch.randint(0, 256, (3, 20, 40), dtype=torch.uint8)
    assert torch.equal(fit_square_of(node)(image), data_of({"data": node}).fit_square(image))
    assert not torch.equal(fit_square_of(node)(image), fit_square_of(node | {"keep_aspect": True})(image))


@pytest.fixture
def mixed(tmp_path):
    """Good and bad files in turn."""
    whole = photo(tmp_path / "a.png", 1).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    photo(tmp_path / "c.jpg", 2)
    (tmp_path / "d.jpg").write_bytes(b"")
    (tmp_path / "e.jpg").write_text("no image at all")
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(tmp_path / "f.png")
    (tmp_path / "h").mkdir()
    photo(tmp_path / "i.png", 3)
    names = [tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.jpg", "e.jpg", "f.png", "g.png", "h", "i.png")]
    return names, {"a.png", "c.jpg", "i.png"}


FORMATS = {
    "json": lambda text: [json.loads(line) for line in text.splitlines()],
    "csv": lambda text: [
        {key: value or None for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))
    ],
}


@pytest.mark.process
@pytest.mark.parametrize("form", FORMATS)
def test_bad_files_get_rows_with_errors_and_the_rest_go_on(checkpoint, mixed, form):
    names, good = mixed
    done = run(f"checkpoint={checkpoint}", *names, f"format={form}", "batch_size=2", "num_workers=1")
    assert done.returncode == 2, done.stderr
    rows = FORMATS[form](done.stdout)
    assert [row["image"] for row in rows] == [str(name) for name in names]
    for row in rows:
        succeeded = Path(row["image"]).name in good
        assert (row["error"] is None) == succeeded
        assert (row["class"] in ("finch", "wren")) == succeeded
    errors = {Path(row["image"]).name: row["error"] for row in rows}
    assert "truncated" in errors["b.png"]
    assert "more than 8 bits" in errors["f.png"]
    assert errors["g.png"] == "no such file"
    assert "folder without images" in errors["h"]
    assert "3 images classified, 6 failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_every_file_fails_the_status_says_so(checkpoint, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    status, out, _ = written(capsys, [tmp_path], f"checkpoint={checkpoint}")
    assert status == 1
    assert json.loads(out)["error"]


def test_json_and_csv_hold_the_same(checkpoint, mixed, capsys):
    by_json, by_csv = (
        FORMATS[form](written(capsys, mixed[0], f"checkpoint={checkpoint}", f"format={form}", "top=2")[1])
        for form in ("json", "csv")
    )
    assert by_csv == [{key: None if cell is None else str(cell) for key, cell in row.items()} for row in by_json]


def test_a_table_shows_every_class_and_probability(checkpoint, mixed, capsys):
    names = mixed[0]
    rows = FORMATS["json"](written(capsys, names, f"checkpoint={checkpoint}")[1])
    text = written(capsys, names, f"checkpoint={checkpoint}", "format=table")[1]
    lines = [line for line in text.replace("\n ", " ").splitlines() if line.strip()]
    assert lines[0].split() == ["image", "class", "probability", "anomaly", "accepted"]
    joined = "".join(text.split())  # long paths are folded
    for row in rows:
        if row["error"] is None:
            shown = f"{row['class']}{100 * row['probability']:.1f}%{row['score/anomaly']:.4g}"
            assert shown in joined
        else:
            assert "".join(f"{row['image']}: {row['error']}".split()) in joined


def test_the_advice_names_a_detector_that_can_be_chosen():
    (chosen,) = re.findall(r"detector=\w+", ADVICE)
    assert list(detectors_of(config_of("evaluate", chosen))) == [chosen.removeprefix("detector=")]


@pytest.mark.process
def test_paths_come_from_stdin_and_from_the_option_beside_plain_words(checkpoint, tree, expected):
    listed = sorted(expected)
    words = (f"checkpoint={checkpoint}", f"images=[{listed[3]}]", listed[2], "-", listed[0])
    done = run(*words, given=f"{listed[1]}\n\n{tree / 'wren'}\n")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert found == [listed[3], listed[2], listed[1], *[path for path in listed if "wren" in path], listed[0]]


@pytest.mark.process
def test_what_cannot_begin_is_told_in_one_line(checkpoint, tree):
    for words, message in [
        ([tree], "robustfg: set checkpoint=…"),
        ([f"checkpoint={checkpoint}", tree, "-m"], "has no multirun"),
        ([f"checkpoint={checkpoint}", tree, "frp=0.1"], "frp"),
    ]:
        done = run(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fpr=0", r"fpr must be in \(0, 1\), got 0"),
        ("fpr=1", r"fpr must be in \(0, 1\), got 1"),
        ("top=0", r"top must be in \[1, 2\]"),
        ("top=3", r"top must be in \[1, 2\]"),
        ("format=xml", r"format must be table, json, csv, got xml"),
        ("batch_size=0", r"batch_size must be >= 1, got 0"),
        ("num_workers=-1", r"num_workers must be >= 0, got -1"),
        ("device=abacus", r"device=abacus: "),
        ("to=/nowhere/rows.csv", r"to=/nowhere/rows.csv: No such file or directory"),
        ("detectors=/nowhere.pt", r"detectors=/nowhere.pt: no such file or folder; evaluations lie under outputs/eval"),
        ("checkpoint=/nowhere.ckpt", r"checkpoint=/nowhere.ckpt: no such file"),
    ],
)
def test_options_that_cannot_be_are_named(checkpoint, tree, override, message):
    with pytest.raises(UserError, match=message):
        predict(config(f"checkpoint={checkpoint}", override), [str(tree)])


def test_no_image_at_all_is_told(checkpoint):
    with pytest.raises(UserError, match="no image is named"):
        predict(config(f"checkpoint={checkpoint}"), [])


def test_a_checkpoint_that_names_foreign_code_is_refused(checkpoint, tree, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["robustfg"]["config"]["loss"] = {"_target_": "os.system", "command": "touch stolen"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="the checkpoint names os.system"):
        load(tmp_path / "evil.ckpt")


def test_a_file_of_rows_appears_whole_or_not_at_all(checkpoint, mixed, tmp_path, capsys, monkeypatch):
    to = tmp_path / "rows.csv"
    status, out, _ = written(capsys, mixed[0], f"checkpoint={checkpoint}", f"to={to}")
    assert (status, out) == (2, "")
    assert [row["image"] for row in FORMATS["csv"](to.read_text())] == [str(name) for name in mixed[0]]
    before = to.read_text()

    def break_down(self, names, lines):
        yield Row("a.png", error="x")
        raise RuntimeError("the network broke down")

    monkeypatch.setattr(Predictor, "__call__", break_down)
    with pytest.raises(RuntimeError, match="broke down"):
        written(capsys, mixed[0], f"checkpoint={checkpoint}", f"to={to}")
    assert to.read_text() == before
    partial = tmp_path / "rows.csv.partial"
    assert [(row["image"], row["error"]) for row in FORMATS["csv"](partial.read_text())] == [("a.png", "x")]
    partial.unlink()

    def break_down_at_once(self, names, lines):
        raise RuntimeError("the network broke down")

    monkeypatch.setattr(Predictor, "__call__", break_down_at_once)
    with pytest.raises(RuntimeError, match="broke down"):
        written(capsys, mixed[0], f"checkpoint={checkpoint}", f"to={to}")
    assert sorted(path.name for path in tmp_path.glob("rows*")) == ["rows.csv"]


def test_what_cannot_be_written_is_refused_before_the_checkpoint_is_read(tmp_path, capsys, monkeypatch):
    missing = tmp_path / "none.ckpt"
    (tmp_path / "plain").write_text("")
    for place, message in {
        tmp_path: r"is a folder; name a file",
        tmp_path / "no" / "rows.csv": r"rows.csv: No such file or directory",
        tmp_path / "plain" / "rows.csv": r"rows.csv: Not a directory",
    }.items():
        with pytest.raises(UserError, match=message):
            written(capsys, ["a.png"], f"checkpoint={missing}", f"to={place}")
    with pytest.raises(UserError, match="no such file"):
        written(capsys, ["a.png"], f"checkpoint={missing}", f"to={tmp_path / 'rows.json'}")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_full_disk_ends_it_with_a_line_that_names_the_place(checkpoint, mixed, tmp_path, capsys):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full: No space left on device"):
        written(capsys, mixed[0], f"checkpoint={checkpoint}", f"to={tmp_path / 'full'}", "format=csv")


@pytest.mark.process
def test_rows_are_kept_where_it_is_stopped_or_a_loader_dies(checkpoint, mixed, tmp_path):
    """Paths come from a pipe that stays open, so that it is stopped in the middle; a pipe among them is no image."""
    os.mkfifo(tmp_path / "pipe.png")
    names = [*map(str, mixed[0]), str(tmp_path / "pipe.png")]
    for case, workers in (("INT", 0), ("TERM", 0), ("loader", 1)):
        to = tmp_path / f"{case}.csv"
        words = [f"checkpoint={checkpoint}", f"to={to}", "batch_size=1", f"num_workers={workers}", "-"]
        process = warm.start("robustfg.predict", *words)
        process.stdin.write("\n".join(names) + "\n")
        process.stdin.flush()
        partial = tmp_path / f"{case}.csv.partial"
        while not partial.exists() or partial.read_text().count("\n") < len(names) - 1:  # loaders read two ahead
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        if case == "loader":
            loaders = ["pgrep", "-P", str(process.pid)]
            os.kill(int(subprocess.run(loaders, capture_output=True, text=True).stdout), signal.SIGKILL)
        else:
            process.send_signal(getattr(signal, f"SIG{case}"))
        process.wait(timeout=120)  # before its input ends
        _, errors = process.communicate()
        assert process.returncode == {"INT": 130, "TERM": 143, "loader": 1}[case], errors
        assert f"the rows so far are kept in {partial}" in errors
        assert "Traceback" not in errors
        rows = FORMATS["csv"](partial.read_text())
        assert [row["image"] for row in rows] == names[: len(rows)]
        assert len(rows) >= len(names) - 2
        assert not to.exists()


@pytest.mark.process
def test_a_reader_that_has_seen_enough_ends_it_quietly(checkpoint, tree):
    words = f"'{sys.executable}' -m robustfg.predict 'checkpoint={checkpoint}' '{tree}' batch_size=1 num_workers=0 -"
    endless = f"yes '{tree / 'wren' / '0.png'}'"
    done = subprocess.run(
        ["bash", "-c", f"{endless} | {words} | head -n 3"], capture_output=True, text=True, timeout=120,
        cwd=HERE.parent,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 3
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


class Brightness(Detector):
    """A detector of its own for the tests: the first logit, scaled."""

    def __init__(self, *, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))

    def score(self, output, views=()):
        return output.logits[:, 0] * self.scale


def fitted_for(checkpoint, path, target="test_predict.Brightness", low=-3.0, high=0.0, **about):
    classifier = restored_of(Checkpoint.read(checkpoint), ())
    known = {"weights_sha256": weights_sha256(classifier), "head": None} | about
    scores = torch.linspace(low, high, 99)
    Fitted({"bright": Brightness(scale=2)}, {"bright": {"_target_": target}}, {"bright": scores}, known).write(path)
    return path


TRUSTED = "trust=[test_predict]"


@pytest.mark.parametrize("place", ["beside the run", "given"])
def test_fitted_detectors_judge_every_image_at_the_chosen_rate(checkpoint, tree, expected, tmp_path, capsys, place):
    scores = {path: 2 * float(logits[0]) for path, (logits, _) in expected.items()}
    low, high = min(scores.values()), max(scores.values())
    beside = checkpoint.parent.parent / "robustness" / "detectors.pt"
    path = fitted_for(checkpoint, beside if place == "beside the run" else tmp_path / "d.pt", low=low, high=high)
    options = [f"detectors={path}"] if place == "given" else []
    status, out, errors = written(capsys, [tree], f"checkpoint={checkpoint}", TRUSTED, "fpr=0.3", *options)
    path.unlink()
    limit = np.linspace(low, high, 99)[-30]  # floor(0.3 · 100) = 30 of the 99 are rejected, this one the last of them
    rows = FORMATS["json"](out)
    for row in rows:
        assert row["score/bright"] == pytest.approx(scores[row["image"]], rel=1e-4)
        assert row["accepted/bright"] == (scores[row["image"]] < limit)
    rejected = sum(not row["accepted/bright"] for row in rows)
    assert (status, len(rows)) == (0, 18)
    assert 0 < rejected < 18
    assert f"18 images classified, 0 failed; bright rejects {rejected}" in errors
    assert "thresholds" not in errors


@pytest.mark.parametrize("given", ["", "robustness", "robustness/detectors.pt"])
def test_detectors_are_given_by_their_file_or_its_folders(checkpoint, tmp_path, given):
    fitted_for(checkpoint, tmp_path / "robustness" / "detectors.pt")
    assert "bright" in load(checkpoint, detectors=tmp_path / given, trust=["test_predict"]).thresholds


def test_a_folder_without_detectors_is_told(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"detectors=.* holds no detectors.pt; evaluations lie under outputs/eval"):
        load(checkpoint, detectors=tmp_path)


def test_an_image_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"^checkpoint=.*photo.png is no checkpoint$"):
        load(photo(tmp_path / "photo.png", 1))


def test_one_image_is_told_as_one():
    tally = Tally()
    tally.count(Row("a.png"))
    assert tally.summary() == "1 image classified, 0 failed"
    tally.count(Row("b.png"))
    assert tally.summary() == "2 images classified, 0 failed"


def test_a_rate_at_which_the_calibration_cannot_reject_anything_is_refused(checkpoint, tmp_path):
    path = fitted_for(checkpoint, tmp_path / "d.pt")
    with pytest.raises(UserError, match=r"fpr must be at least 1/100, since bright is calibrated on 99 .*; got 0.005"):
        load(checkpoint, detectors=path, trust=["test_predict"], fpr=0.005)
    assert load(checkpoint, detectors=path, trust=["test_predict"], fpr=0.01).thresholds["bright"] < np.inf


@pytest.mark.parametrize("about", [{"weights_sha256": "0" * 64}, {"head": "attention"}])
def test_detectors_of_another_classifier_are_refused_where_given_and_left_out_where_found(
    checkpoint, tree, tmp_path, capsys, about
):
    path = fitted_for(checkpoint, tmp_path / "d.pt", **about)
    with pytest.raises(UserError, match=rf"detectors=.*another classifier.*{next(iter(about))} differs"):
        load(checkpoint, detectors=path, trust=["test_predict"])
    beside = fitted_for(checkpoint, checkpoint.parent.parent / "robustness" / "detectors.pt", **about)
    status, out, errors = written(capsys, [tree], f"checkpoint={checkpoint}", TRUSTED)
    beside.unlink()
    assert status == 0
    assert "another classifier" in errors
    assert FORMATS["json"](out)[0]["accepted/anomaly"] is None


def test_detectors_that_name_foreign_code_are_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"names test_predict\.Brightness.*trust="):
        load(checkpoint, detectors=fitted_for(checkpoint, tmp_path / "d.pt"))
    with pytest.raises(UserError, match=r"names os\.system"):
        load(checkpoint, detectors=fitted_for(checkpoint, tmp_path / "d.pt", target="os.system"))


class Sums(torch.nn.Module):
    """Logits from the mean red and green; the score is the largest red."""

    def forward(self, image):
        logits = 10 * image.mean((2, 3))[:, :2]
        return Output(logits=logits, embedding=logits, scores={"red": image[:, 0].amax((1, 2))})


def predictor(**options):
    given = {"classes": ("red", "green"), "detectors": ("red",), "thresholds": {"red": 0.5}}
    return Predictor(network=Sums(), **({"transform": untouched} | given | options))


def test_rows_come_while_paths_are_still_being_named(tmp_path):
    path = str(photo(tmp_path / "a.png", 0, size=(4, 4)))
    drawn = itertools.count()
    endless = (path for _ in drawn)
    rows = predictor(batch_size=4)(endless)
    assert [row.image for row in itertools.islice(rows, 1000)] == [path] * 1000
    assert next(drawn) <= 1000 + 8


@pytest.mark.process
def test_loader_processes_read_a_bounded_number_of_paths_ahead_and_keep_the_order(tmp_path):
    paths = [str(photo(tmp_path / f"{number}.png", number, size=(4, 4))) for number in range(7)]
    drawn = itertools.count()
    endless = (paths[number % 7] for number in drawn)
    rows = predictor(batch_size=4, num_workers=2)(endless)
    assert [row.image for row in itertools.islice(rows, 200)] == [paths[number % 7] for number in range(200)]
    assert next(drawn) <= 200 + 4 * (2 * 2 + 2)


def test_an_image_is_accepted_up_to_the_threshold_and_named_by_its_largest_logits(tmp_path):
    for name, colour in {"a": (255, 0, 0), "b": (0, 255, 0), "c": (51, 0, 0)}.items():
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    rows = list(predictor(top=2, thresholds={"red": float(np.float32(0.2))})([tmp_path]))
    assert [[name for name, _ in row.top] for row in rows] == [["red", "green"], ["green", "red"], ["red", "green"]]
    assert [row.accepted for row in rows] == [{"red": False}, {"red": True}, {"red": True}]
    probability = 1 / (1 + np.exp(-10))
    assert [p for _, p in rows[0].top] == pytest.approx([probability, 1 - probability], abs=1e-6)


def test_answers_that_are_no_numbers_become_errors_and_scores_that_are_none_are_rejected(tmp_path):
    class Broken(Sums):
        def forward(self, image):
            output = super().forward(image)
            output.logits[0] = torch.nan
            output.scores["red"][1] = torch.nan
            return output

    photo(tmp_path / "a.png", 0), photo(tmp_path / "b.png", 1)
    broken = predictor()
    broken.network = Broken()
    first, second = broken([tmp_path])
    assert "not finite" in first.error
    assert second.accepted == {"red": False}
    assert second.cells()["score/red"] is None


@pytest.mark.parametrize("place", ["PIL.ImageOps.exif_transpose", "test_predict.untouched"])
@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("too large\nfor this machine")])
def test_an_image_too_large_to_be_read_or_brought_to_size_does_not_stop_the_rest(tmp_path, place, failure):
    photo(tmp_path / "a.png", 0), photo(tmp_path / "b.png", 1)
    reader = predictor(transform=lambda image: untouched(image))
    with mock.patch(place, side_effect=[failure, mock.DEFAULT]) as broken:
        broken.return_value = Image.new("RGB", (4, 4)) if "PIL" in place else torch.zeros(3, 4, 4, dtype=torch.uint8)
        first, second = reader([tmp_path])
    assert first.error.endswith("MemoryError" if isinstance(failure, MemoryError) else "too large")
    assert second.error is None


def untouched(image):
    return image


def test_folders_are_walked_in_the_order_of_their_paths_without_hidden_and_other_files(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a.jpg", "b-c/x.webp", ".h/y.png", "b/.z.png", "notes.txt", "e/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    shown = [os.path.relpath(path, tmp_path) for path in images_in([tmp_path])]
    assert shown == ["a.jpg", "b/10.PNG", "b/2.png", "b-c/x.webp"]
    shown = [os.path.relpath(path, tmp_path) for path in images_in([tmp_path / "notes.txt", tmp_path / "e"])]
    assert shown == ["notes.txt", "e"]  # reading them tells what is wrong


def test_one_folder_is_listed_at_a_time(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number:02d}").mkdir()
        (tmp_path / f"{number:02d}" / "x.png").touch()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    found = images_in([tmp_path])
    assert [os.path.relpath(next(found), tmp_path) for _ in range(3)] == ["00/x.png", "01/x.png", "02/x.png"]
    assert len(listed) <= 5


def test_names_that_are_no_text_survive_every_format(tmp_path, checkpoint):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    photo(tmp_path / "a.png", 0)
    os.rename(tmp_path / "a.png", name)
    for form in ("json", "csv", "table"):
        to = tmp_path / f"rows.{form}"
        assert predict(config(f"checkpoint={checkpoint}", f"format={form}", f"to={to}"), [str(tmp_path)]) == 0
    assert os.fsencode(json.loads((tmp_path / "rows.json").read_text())["image"]) == name
    assert name in (tmp_path / "rows.csv").read_bytes()


def test_words_are_split_into_options_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fpr=1", "job", "a.png"):
        (tmp_path / name).touch()
    words = ["fpr=0.1", "a.png", "fpr=1", "-", "+x=1", "~top", "--cfg", "job", "job", "new.png", "--", "--odd", "b=c"]
    options, paths = split(words)
    assert options == ["fpr=0.1", "+x=1", "~top", "--cfg", "job"]
    assert paths == ["a.png", "fpr=1", "-", "job", "new.png", "--odd", "b=c"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("che", "checkpoint="), ("device=", "device=auto"), ("", "fpr="), ("a.png b/ for", "format=")],
)
def test_a_shell_completes_options_after_paths(typed, offered):
    environment = {"COMP_LINE": f"robustfg-predict a.png top=1 {typed}"}
    done = warm.run("robustfg.predict", "-sc", "query=bash", environment=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    assert offered in done.stdout.split()
