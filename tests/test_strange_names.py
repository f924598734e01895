"""Names that strangers choose: no text steers the terminal, the page, a figure, a spreadsheet, or breaks a file."""

import csv
import io
import json
import os
import re

import pytest
from rich.console import Console
from test_stored_splits import options, photos, told

from robustfg.core.text import csv_cell, drawable, printable, shown
from robustfg.predict import predict
from robustfg.prediction import writer_of
from robustfg.reporting import print_summary
from robustfg.train import train

NAMES = ("$x_1{", "_hidden $", "=1+1", "<img src=x onerror=y>", "a\x1b[31mred", "two\nlines", "x\u202egpj", "[bold]b",
         "%s{0}&amp;", os.fsdecode(b"caf\xe9"))  # fmt: skip
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    root = photos(tmp_path_factory.mktemp(os.fsdecode(b"r\xe9")), *NAMES, count=6)
    os.rename(root / "=1+1" / "00.png", root / "=1+1" / os.fsdecode(b"-\xff\x1b[2J.png"))
    folder = tmp_path_factory.mktemp("out") / "run"
    config = options("elsewhere")  # the shell's words are quoted by the commands, which are not asked here
    config["data"]["root"] = config["data"]["source"]["root"] = str(root)
    train(config, folder, command=["train", "a\x1b[31m\u202e"])
    return root, folder


def test_a_run_over_strange_names_is_evaluated_and_shown_without_steering_anything(strange, tmp_path, capsys):
    root, folder = strange
    capsys.readouterr()

    _, summary = told(folder / "checkpoints" / "best.ckpt", tmp_path / "e")
    said = capsys.readouterr()
    assert STEERING.search(said.out + said.err) is None
    assert set(summary["classes"]) == set(NAMES)
    page = (tmp_path / "e" / "robustness" / "report.html").read_text(encoding="utf-8")
    assert STEERING.search(page) is None
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=y&gt;" in page
    splits = json.loads((folder / "splits.json").read_text())
    assert sorted(os.fsencode(key) for name in ("train", "val", "test") for key in splits[name]) == sorted(
        os.fsencode(path.relative_to(root)) for path in root.rglob("*.png")
    )


def test_a_summary_with_strange_names_reaches_a_terminal_as_text(strange, tmp_path):
    _, folder = strange
    _, summary = told(folder / "checkpoints" / "best.ckpt", tmp_path / "e")
    summary["data"], summary["attacks"]["[red]\x1b[0m$"] = "[bold]\x07data", summary["attacks"]["fgsm"]
    summary["genera"] = list(NAMES)
    with open(tmp_path / "told.txt", "w", encoding="utf-8") as file:
        print_summary(summary, folder / "x\x1b.html", Console(file=file, width=200))
    text = (tmp_path / "told.txt").read_text()
    assert STEERING.search(text) is None
    assert "[bold]?data" in text
    assert "[red]?[0m$" in text


def test_rows_of_strange_files_are_computed_by_no_spreadsheet(strange, tmp_path, monkeypatch, capsys):
    from hydra import compose, initialize_config_dir

    from robustfg.cli.config import CONF, plain

    root, folder = strange
    monkeypatch.chdir(root / "=1+1")
    for form in ("csv", "json", "table"):
        words = [f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}", f"format={form}", f"to={tmp_path / form}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = plain(compose("predict", overrides=["num_workers=0", *words]))
        name = os.fsdecode(b"-\xff\x1b[2J.png")
        assert predict(config, [name, "01.png"]) == 0
    said = capsys.readouterr()
    assert STEERING.search(said.out + said.err) is None
    with (tmp_path / "csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        first, _ = csv.DictReader(file)
    assert first["image"] == f"./{name}"
    assert os.path.exists(first["image"])
    assert not any(cell.startswith(("=", "+", "@")) for cell in first.values())
    assert json.loads((tmp_path / "json").read_text().splitlines()[0])["image"] == name
    assert STEERING.search((tmp_path / "table").read_text(encoding="utf-8")) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_can_be_drawn_with_any_name(name):
    from matplotlib.figure import Figure

    from robustfg.reporting.figures import data_uri

    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=drawable(name))
    axes.set_title(drawable(name))
    legend = axes.legend()
    assert data_uri(figure, "svg")
    assert [text.get_text() for text in legend.get_texts()] == [drawable(name)]


def test_ordinary_names_are_shown_as_they_are():
    for name in ("Black-footed Albatross", "T-shirt/top", "Zwergtaucher, männlich", "コウノトリ", "a  b"):
        assert printable(name) == drawable(name) == csv_cell(name) == shown([{name: name}])[0][name] == name
    assert printable("two\nlines\t") == "two?lines?"
    assert csv_cell("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"


BLANKS = ("", " ", "\u00a0", "\ufeff", "\u200b", "\0", "\x1b", "\u202e", "\u3000 ")


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\ufe66", "\u2212"])
def test_no_cell_is_computed_whatever_stands_before_the_sign_and_however_wide_it_is(sign):
    for blank in BLANKS:
        assert csv_cell(f"{blank}{sign}1") == f"'{printable(blank)}{sign}1"
    for name in (f"a{sign}1", f"1 {sign}"):
        assert csv_cell(name) == name


def test_csv_steers_no_terminal_and_keeps_paths_as_they_are_in_a_file():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    path, steering = "\uff1d\x1b[2J\u202e\0.png", "\x1b]0;x\x07\u202e\0"
    columns = ["image", "class", f"score/{steering}", "error"]
    rows = []
    for stream in (Terminal(), io.StringIO()):
        writer_of("csv", None)(stream, columns)({"image": path, "class": f" ={steering}", "error": steering})
        rows.append([*csv.reader(io.StringIO(stream.getvalue().replace("\0", "NUL")))])
        assert STEERING.search(stream.getvalue().replace(path, "")) is None
    assert rows[0] == [
        ["image", "class", "score/?]0;x???", "error"],
        ["./\uff1d?[2J??.png", "' =?]0;x???", "", "?]0;x???"],
    ]
    assert rows[1][1][0] == f"./{path}".replace("\0", "NUL")
    for form in ("table", "json"):
        stream = Terminal()
        writer_of(form, None)(stream, columns)({"image": f"{path}\x7f", "class": steering, "error": None})
        assert STEERING.search(re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())) is None
