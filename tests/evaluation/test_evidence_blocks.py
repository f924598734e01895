"""The whole evaluation on annotated data: against a naive recomputation, on two processes, and interrupted."""

import io
import json
import math
import socket

import annotated
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
import toy
import warm
from rich.console import Console

from robustfg.evaluation.records import RecordStore
from robustfg.evaluation.regions import TOLERANCE
from robustfg.reporting import print_summary, write_page

BLOCKS = ("taxonomy", "attention", "separation", "embedding", "calibration", "not_measured")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    annotated.evaluate(folder)
    return folder / "robustness"


def records(folder):
    return pq.read_table(folder / "records.parquet").drop(["seconds"])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def naive(model, image, position, fit):
    """What the records must say about one image; masks and points go through the image's own transform by painting."""
    split = annotated.Annotated().test

    def fitted(mask):
        return fit(torch.from_numpy(mask[None].repeat(3, 0) * np.uint8(255)))[0] > 127

    output = model(image[None])
    closest = output.maps["class_distance"][0, output.logits[0].argmax()]
    parts, box = split.parts(position), np.zeros((annotated.HEIGHT, annotated.WIDTH), bool)
    left, top, width, height = split.box(position)
    box[top : top + height, left : left + width] = True
    masks = {"parts": parts.get("beak", 0 * box).astype(bool), "object": split.mask(position), "box": box}
    numbers = {}
    for name, cells in (("attention", output.maps["attention"][0, 0]), ("prototype", 1 / (1 + closest))):
        numbers[f"{name}/dead"] = float(cells.max() <= 0)
        if cells.max() <= 0:
            continue
        pixels = F.interpolate(cells[None, None], size=(annotated.SIZE,) * 2, mode="bilinear")[0, 0]
        cell = int(cells.argmax())
        peak = [int((place + 0.5) * annotated.SIZE / cells.shape[0]) for place in divmod(cell, cells.shape[1])]
        for region, mask in masks.items():
            inside = fitted(mask)
            if inside.any():
                numbers[f"{name}/{region}_mass"] = float(pixels[inside].sum() / pixels.sum())
                away = min(math.dist(peak, pixel) for pixel in inside.nonzero().tolist())
                numbers[f"{name}/{region}_hit"] = float(away <= TOLERANCE * annotated.SIZE)
        scale = annotated.SIZE / 0.8 / annotated.WIDTH
        points = [
            ((y + 0.5) * scale - 0.5 - 7, (x + 0.5) * scale - 0.5 - 2) for x, y in split.keypoints(position).values()
        ]
        points = [(round(y), round(x)) for y, x in points]
        points = [point for point in points if all(0 <= place < annotated.SIZE for place in point)]
        if points:
            covers = pixels >= pixels.max() / 2
            numbers[f"{name}/keypoints_covered"] = sum(bool(covers[point]) for point in points) / len(points)
            numbers[f"{name}/covered"] = float(covers.double().mean())
            numbers[f"{name}/keypoints_hit"] = float(
                min(math.dist(peak, point) for point in points) <= TOLERANCE * annotated.SIZE
            )
    return numbers


def naive_softmax(model, image, label):
    p = model(image[None]).logits[0].double().softmax(0).tolist()
    brier = sum((share - (k == label)) ** 2 for k, share in enumerate(p))
    return {"softmax/confidence": max(p), "softmax/nll": -math.log(p[label]), "softmax/brier": brier}


@torch.no_grad()
def test_records_equal_a_naive_recomputation_one_sample_at_a_time(whole):
    data, model = annotated.data_module(), annotated.classifier()
    rows = records(whole).to_pylist()
    found = {(row["attack"], row["restart"], row["index"]): row for row in rows}
    compared = 0
    for image, label, index in (data.samples("test")[i] for i in range(31)):
        looked_at = {("clean", 0): image}
        if model(image[None]).logits.argmax() == label:
            for name, attack in annotated.suite().items():
                (first, *_) = attack.attempts(model, image[None], label[None], index[None])
                looked_at[name, 0] = first.image[0]
        for (attack, restart), seen in looked_at.items():
            row = found[attack, restart, int(index)]
            measures = {
                key: value for key, value in row.items() if "/" in key and "places" not in key and value is not None
            }
            expected = naive(model, seen, int(index), data.fit_square) | naive_softmax(model, seen, int(label))
            assert measures == pytest.approx(expected, abs=2e-5), (
                attack,
                int(index),
            )
            compared += len(measures)
    assert compared > 500


def test_the_summary_counts_the_worst_row_of_every_sample(whole):
    rows, block = records(whole).to_pylist(), summary_of(whole)["attention"]["attention"]
    clean = {row["index"]: row for row in rows if row["attack"] == "clean"}
    attacked = {}
    for row in rows:
        if row["attack"] in ("short", "long") and clean[row["index"]]["correct"] and row["attention/dead"] is not None:
            held = attacked.setdefault(row["index"], row)
            attacked[row["index"]] = min(held, row, key=lambda row: row["margin"])
    assert block["clean"]["dead"] == sum(row["attention/dead"] for row in clean.values()) == 2
    broken = [row for row in attacked.values() if not row["correct"]]
    assert 0 < len(broken) < len(attacked) < 31
    for name, those in (("attacked", list(attacked.values())), ("broken", broken)):
        masses = [row["attention/parts_mass"] for row in those if row["attention/parts_mass"] is not None]
        assert block[name]["n"] == len(those)
        assert block[name]["parts"]["n"] == len(masses)
        assert block[name]["parts"]["mass"] == pytest.approx(np.mean(masses))
    assert block["clean"]["parts"]["ratio"] > 2


@torch.no_grad()
def test_the_separation_block_belongs_to_the_evaluated_samples(whole):
    data, model = annotated.data_module(), annotated.classifier()
    samples = [data.samples("test")[i] for i in range(31)]
    points = model(torch.stack([sample.image for sample in samples])).embedding.double()
    labels = torch.stack([sample.label for sample in samples])
    for k, name in enumerate(annotated.Annotated.classes):
        centre = points[labels == k].mean(0)
        inside, outside = ((points[chosen] - centre).norm(dim=1) for chosen in (labels == k, labels != k))
        found = summary_of(whole)["separation"]["classes"][name]
        assert found["separation"] == pytest.approx(float(outside.min() / inside.max()), rel=1e-4)


def test_the_worst_case_and_the_taxonomy_count_the_same_errors(whole):
    summary = summary_of(whole)
    found = summary["taxonomy"]["genus"]
    for name, part in (("clean", summary["clean"]), ("worst_case", summary["worst_case"]), *summary["attacks"].items()):
        assert found[name]["errors"] == part["n"] - part["correct"]
        assert found[name]["inside"] + found[name]["outside"] == found[name]["errors"]
        assert part["correct"] <= found[name]["held"]["correct"] <= part["correct"] + found[name]["inside"]


class KilledError(Exception):
    pass


def test_an_interrupted_evaluation_ends_with_the_same_evidence(whole, tmp_path, monkeypatch):
    real, calls = RecordStore.add, []

    def dying(self, *unit):
        calls.append(unit)
        if len(calls) == 12:
            raise KilledError
        return real(self, *unit)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "add", dying)
        with pytest.raises(KilledError):
            annotated.evaluate(tmp_path)
    annotated.evaluate(tmp_path)
    assert records(tmp_path / "robustness").equals(records(whole))
    for block in BLOCKS:
        assert summary_of(tmp_path / "robustness")[block] == summary_of(whole)[block]


def flat(value, name=""):
    if isinstance(value, dict):
        return {key: leaf for part in value for key, leaf in flat(value[part], f"{name}.{part}").items()}
    if isinstance(value, list):
        return {key: leaf for place, part in enumerate(value) for key, leaf in flat(part, f"{name}.{place}").items()}
    return {name: value}


@pytest.mark.process
def test_two_processes_with_uneven_shards_find_what_one_does(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [warm.start(annotated.__file__, str(rank), str(port), str(tmp_path)) for rank in range(2)]
    try:
        outputs = ["\n".join(process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    one, two = summary_of(whole), summary_of(tmp_path / "robustness")
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for block in BLOCKS:
        ours, theirs = flat(one[block]), flat(two[block])
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), name
    ours, theirs = records(whole).to_pylist(), records(tmp_path / "robustness").to_pylist()
    assert len(ours) == len(theirs)
    for row, other in zip(ours, theirs, strict=True):
        assert other == {k: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v for k, v in row.items()}


def test_page_and_terminal_show_the_evidence(whole):
    summary, console = summary_of(whole), Console(width=200, record=True, quiet=False, file=io.StringIO())
    page = write_page(whole.parent)
    print_summary(summary, page, console)
    text, html = console.export_text(), page.read_text()
    genus, found = summary["taxonomy"]["genus"]["worst_case"], summary["attention"]["attention"]
    assert f"Errors inside the genus: clean 0 of 2 (33.3 % by chance), worst case {genus['inside']} of" in text
    assert f"{found['attacked']['parts']['ratio']:.1f}× chance attacked" in text
    assert "dead maps 0 of 29 clean" in text
    assert f"{summary['separation']['separated']} of 4 classes are apart" in text
    *_, before, verdict, where = text.rstrip().splitlines()
    assert before == ""
    assert verdict.startswith(f"Verdict: {summary['verdict']}.")
    assert where.startswith("Page: ")
    for heading in ("Errors by taxonomy", "Where the evidence lies", "Latent separation", "Feature space"):
        assert f"\n\n{heading}" in "\n".join(line.rstrip() for line in text.splitlines())
    rho = summary["separation"]["attacks"]["pairs"]["rho"]
    for shown in (text, html):
        assert f"{rho:.2f} (p " in shown
    headings = ("Errors by taxonomy", "Where the evidence lies", "Latent separation", "Feature space", "Calibration")
    for heading in (*headings, "under the map &#39;attention&#39;", "Fisher's two discriminant directions"):
        assert heading in html
    assert f"vary by {100 * summary['embedding']['symmetry']['variation']:.1f} %" in html
    ece = summary["calibration"]["worst_case"]["ece"]
    assert f"{100 * ece:.1f} % worst case" in text
    assert f'<td class="number">{100 * ece:.1f} %</td>' in html
    assert f'<td>attention</td><td>clean, all</td><td class="number">{found["clean"]["dead"]} of 31</td>' in html
    mass, ratio = found["broken"]["parts"]["mass"], found["broken"]["parts"]["ratio"]
    assert f"{100 * mass:.1f} %, {ratio:.2f}× chance" in html
    for name in annotated.Annotated.classes:
        assert f"<td>{name}</td>" in html
    assert "Not measured" not in html


def test_the_gallery_holds_the_map_of_the_clean_and_of_the_attacked_image(whole):
    content, model = np.load(whole / "gallery.npz"), annotated.classifier()
    assert str(content["map"]) == "attention"
    for name, image in (
        ("clean_map", content["clean"]),
        ("attacked_map", (content["clean"] + content["delta"]).clip(0, 1)),
    ):
        with torch.no_grad():
            naive = model(torch.from_numpy(image)).maps["attention"][:, 0]
        assert np.allclose(content[name], naive, atol=1e-6)
    assert not np.allclose(content["clean_map"], content["attacked_map"], atol=1e-3)


def test_what_cannot_be_measured_says_why(classifier, tmp_path):
    summary = toy.evaluate(
        classifier, tmp_path, checks=0
    )  # no genera, no annotations; a head with a class-activation map
    assert summary["taxonomy"] is None
    assert summary["not_measured"] == {"taxonomy": "the data tells no groups of classes"}
    assert set(summary["attention"]["cam"]["clean"]) == {"n", "dead"}
    assert summary["separation"]["n"] == 5
    html = write_page(tmp_path).read_text()
    assert "Not measured: taxonomy, since the data tells no groups of classes." in html
