"""What an attack found on a batch is kept round by round; a continued evaluation ends with the same."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import warm
from killed import KILLS, cascade
from toy import data_module, evaluate

from robustfg.attacks import Linf, Transfer, white_box
from robustfg.core.types import Batch
from robustfg.detectors import Energy
from robustfg.evaluation.detection.watched import WatchedClassifier
from robustfg.evaluation.pace import Pace
from robustfg.evaluation.records import CLEAN, RecordStore
from robustfg.evaluation.rounds import measure_attack

DETECTOR = "energy"


@pytest.fixture(scope="module")
def batch():
    samples = data_module().samples("test")
    image, label, index = zip(*(samples[i] for i in range(20)), strict=True)
    label = torch.stack(label)
    label[3:5] = label[3:5].flip(0)  # two samples that are wrong when clean
    return Batch(torch.stack(image), label, torch.stack(index))


def attacks(trained):
    joint = white_box(DETECTOR, threat=Linf(epsilon="8/255"), tau=-3.0, scale=1.0, lowest=-5.0, steps=3, restarts=2)
    crafted = Transfer(attack=cascade(), surrogate=trained.eval(), surrogate_name="itself", name="transfer")
    return {"cascade": cascade(), "transfer": crafted, **joint}


def bare(rows):
    """Rows by restart and sample, without how long they took."""
    return {
        (row["restart"], row["index"]): {k: v for k, v in row.items() if k not in ("seconds", "state")} for row in rows
    }


def test_an_attack_continued_after_any_of_its_commits_ends_with_the_same_rows_and_perturbations(
    trained, batch, tmp_path
):
    watched = WatchedClassifier(trained, {DETECTOR: Energy()}).eval()
    with torch.no_grad():
        logits = watched(batch.image).logits
    for number, (name, attack) in enumerate(attacks(trained).items()):
        prints = {CLEAN: "c", name: "a"}
        options = {"keep": True, "pace": Pace(1.0, 6), "detector": DETECTOR if "/" in name else None}
        whole = list(measure_attack(watched, attack, batch, logits, **options))
        assert len(whole) > 2, name
        rows = [row for unit, _ in whole for row in unit]
        assert len(bare(rows)) == len(rows) == len(batch.label) * attack.rounds
        broken = [perturbation for _, unit in whole for perturbation in unit]
        for kept in range(1, len(whole), 1 if name == "cascade" else 2):
            store = RecordStore(tmp_path / f"{number}-{kept}", 0, prints)
            for unit in whole[:kept]:
                store.add(*unit)
            again = RecordStore(tmp_path / f"{number}-{kept}", 0, prints)
            known = again.known(name, batch.index.tolist())
            rest = list(measure_attack(watched, attack, batch, logits, known=known, **options))
            assert len(rest) == len(whole) - kept, "what was written is not measured again"
            assert bare([*known.values(), *(row for unit, _ in rest for row in unit)]) == bare(rows), (name, kept)
            for unit in rest:
                again.add(*unit)
            assert again.worst_margins(1) == {
                index: min(p.margin for p in broken if p.index == index) for index in {p.index for p in broken}
            }


def test_samples_of_a_portion_that_were_written_alone_are_not_attacked_again(trained, batch):
    with torch.no_grad():
        logits = trained(batch.image).logits
    whole = [row for unit, _ in measure_attack(trained, cascade(), batch, logits, keep=False) for row in unit]
    known = {(row["restart"], row["index"]): row for row in whole if row["index"] % 3 or row["restart"] == 0}
    rest = [
        row for unit, _ in measure_attack(trained, cascade(), batch, logits, keep=False, known=known) for row in unit
    ]
    assert {(row["restart"], row["index"]) for row in rest} == bare(whole).keys() - known.keys()
    for key, row in bare(rest).items():
        assert row["correct"] == bare(whole)[key]["correct"]


def test_portions_follow_from_the_models_operations_and_the_rounds_length(trained, batch):
    pace = Pace.of(trained, batch.image)
    convolutions = 2 * (6 * 6 * 8 * 27 + 3 * 3 * 16 * 72) + 2 * 16 * 5
    assert pace.passes == pytest.approx(1e11 * torch.get_num_threads() / convolutions)
    assert pace.least == max(4 * torch.get_num_threads(), math.ceil(5e8 / convolutions))
    stages = cascade().attacks
    assert [cascade().passes_in(restart) for restart in range(6)] == [
        stages[name].passes // stages[name].rounds for name in ("pgd", "pgd", "apgd_t", "apgd_t", "apgd_t", "square")
    ]
    assert Pace(3000.0, 2).portion(cascade(), 5) == 3000 // (3 * 60)
    assert Pace(3.0, 2).portion(cascade(), 5) == 2
    assert Pace().portion(cascade(), 0) > 1e6


def test_an_evaluation_killed_again_and_again_ends_with_the_records_of_one_that_was_not(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    script = Path(__file__).with_name("killed.py")
    found = warm.run(str(script), str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.split()[-1]) == KILLS
    files = sorted(path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*"))
    left = sorted(path.relative_to(tmp_path / "killed").as_posix() for path in (tmp_path / "killed").rglob("*"))
    assert left == files
    for file in ("records.parquet", "perturbations"):
        tables = [pq.read_table(tmp_path / run / "robustness" / file).to_pylist() for run in ("whole", "killed")]
        bare_tables = [
            sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=str) for rows in tables
        ]
        assert bare_tables[0] == bare_tables[1], file


def test_more_than_one_batch_size_does_not_change_who_is_attacked_when_it_continues(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "of", classmethod(lambda cls, model, image: Pace(1.0, 5)))
    suite, stopped = {"cascade": cascade()}, []
    real = RecordStore.add

    def dying(self, rows, perturbations):
        real(self, rows, perturbations)
        stopped.append(len(stopped))
        if len(stopped) == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "add", dying)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            evaluate(trained, tmp_path, attacks=suite, checks=0, data=data_module(batch_size=50))
    summary = evaluate(trained, tmp_path, attacks=suite, checks=0, data=data_module(batch_size=32))
    assert summary["attacks"]["cascade"]["n"] == 101
