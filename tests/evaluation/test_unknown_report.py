import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from toy import SIZE, data_module, evaluate

from robustfg.data.arrays import ArraySplit
from robustfg.detectors import Energy
from robustfg.evaluation.detection import Detection
from robustfg.reporting import print_summary, write_page
from robustfg.reporting.unknown import title, unknown_rows


def level(alpha, count):
    shares = {"count": count, "n": 40, "share": count / 40, "ci95": [0.1, 0.4]}
    return {"alpha": alpha, "tau": None, "unknown_accepted": shares}


def figures(auroc, accepted):
    return {
        "auroc": auroc, "oscr": auroc - 0.1, "unknown_accepted_at_95_known_accepted": 0.3,
        "known_rejected_at_95_unknown_rejected": 0.7, "accepted": [level(0.01, 40), level(0.05, accepted)],
    }  # fmt: skip


@pytest.fixture
def summary():
    detectors = {"energy": {"clean": figures(0.9, 8), "attacked": figures(0.4, 30)}, "knn": {"clean": figures(0.8, 2)}}
    return {
        "detection": {"fpr": 0.05, "threat": {"norm": "linf", "epsilon": "8/255"}},
        "unknown": {"near": {"n": 40, "detectors": detectors}},
    }  # fmt: skip


def test_every_detector_has_a_row_of_clean_and_of_attacked_images_at_the_headline_rate(summary):
    assert unknown_rows(summary) == [
        ("near (40)", "energy", "clean", "0.900", "30.0 %", "0.800", "20.0 % [10.0, 40.0]"),
        ("near (40)", "energy", "attacked", "0.400", "30.0 %", "0.300", "75.0 % [10.0, 40.0]"),
        ("near (40)", "knn", "clean", "0.800", "30.0 %", "0.700", "5.0 % [10.0, 40.0]"),
    ]
    assert (
        title(summary) == "Unknown images, clean and attacked in linf 8/255; accepted: at a false-positive rate of 5 %"
    )


def test_the_terminal_and_the_page_show_a_real_run(classifier, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE), dtype=np.uint8)
    strange = SimpleNamespace(images=ArraySplit(pixels, np.zeros(7, np.int64), "strange"))
    chosen = Detection(
        detectors={"energy": Energy()}, nodes={"energy": {}}, unknown={"strange": strange}, fpr=0.1, grid=(0.2,),
        steps=2, black_box=False,
    )  # fmt: skip
    evaluate(classifier, tmp_path, data=data_module(max_test_samples=20), checks=0, detection=chosen)
    page = write_page(tmp_path).read_text()
    assert "<h2>Unknown images</h2>" in page
    console = Console(record=True, width=100)
    summary = json.loads((tmp_path / "robustness/summary.json").read_text())
    print_summary(summary, tmp_path, console)
    text = console.export_text()
    assert "accepted: at a false-positive rate of 10 %" in text
    for row in unknown_rows(summary):
        line = next(line for line in text.splitlines() if "strange (7)" in line and f" {row[2]} " in line)
        for cell in row:
            assert cell in line
            assert f">{cell}<" in page
