"""Files that go wrong during an evaluation: one line names the path, nothing is lost, the same call continues."""

import json
import math
import resource
import shutil
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from toy import data_module, evaluate, suite

from robustfg.core.errors import UserError
from robustfg.evaluation.records import RecordStore
from robustfg.reporting import write_page


def few():
    return data_module(max_test_samples=30, batch_size=15)


def run(classifier, folder):
    return evaluate(classifier, folder, data=few(), checks=0)


def records(folder):
    return pq.read_table(folder / "robustness" / "records.parquet").drop(["seconds"])


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(trained, folder)
    return folder


def stopped(classifier, folder, monkeypatch, after, how):
    """An evaluation that something happens to after so many commits; what it says."""
    real, units = RecordStore.add, []

    def add(store, *unit):
        real(store, *unit)
        units.append(unit)
        if len(units) == after:
            how(store.path)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "add", add)
        with pytest.raises(UserError) as raised:
            run(classifier, folder)
    assert "\n" not in str(raised.value)
    return str(raised.value), len(units)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_full_disk_loses_nothing(classifier, whole, tmp_path, monkeypatch, after):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))

    before = signal.getsignal(signal.SIGTERM)
    try:
        message, units = stopped(classifier, tmp_path, monkeypatch, after, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in message
    assert signal.getsignal(signal.SIGTERM) is before
    written: list[object] = []
    real = RecordStore.add
    monkeypatch.setattr(RecordStore, "add", lambda store, *unit: written.append(unit) or real(store, *unit))
    run(classifier, tmp_path)
    assert len(written) <= 6 - units + 1, "what was written is not measured again"
    assert records(tmp_path).equals(records(whole))
    assert not list((tmp_path / "robustness").glob("unfinished-*"))
    assert not list((tmp_path / "robustness").glob(".*partial"))


def test_a_folder_that_vanishes_is_named_and_made_again(classifier, whole, tmp_path, monkeypatch):
    message, _ = stopped(classifier, tmp_path, monkeypatch, 2, lambda path: shutil.rmtree(path.parent))
    assert "unfinished-00000.sqlite" in message
    run(classifier, tmp_path)
    assert records(tmp_path).equals(records(whole))


@pytest.mark.parametrize("damage", ["garbage", "truncated", "another program's"])
def test_a_damaged_record_is_named_and_once_removed_the_evaluation_goes_on(
    classifier, whole, tmp_path, monkeypatch, damage
):
    def kill(path):
        raise UserError("killed")

    stopped(classifier, tmp_path, monkeypatch, 5, kill)
    path = tmp_path / "robustness" / "unfinished-00000.sqlite"
    content = path.read_bytes()
    if damage == "another program's":
        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE records (a, b)")
        database.close()
    else:
        path.write_bytes(b"garbage" * 999 if damage == "garbage" else content[: len(content) // 2])
    with pytest.raises(
        UserError, match=r"^.*unfinished-00000\.sqlite (is damaged|was written by another).*remove it"
    ) as raised:
        run(classifier, tmp_path)
    assert "\n" not in str(raised.value)
    path.unlink()
    run(classifier, tmp_path)
    assert records(tmp_path).equals(records(whole))


def test_an_output_folder_that_cannot_be_is_named_before_anything_is_attacked(classifier, tmp_path):
    (tmp_path / "robustness").write_text("a file")
    with pytest.raises(UserError, match="robustness"):
        run(classifier, tmp_path)
    with pytest.raises(UserError, match="/proc/none"):
        run(classifier, Path("/proc/none"))


@pytest.mark.parametrize("name", ["metrics.csv", "provenance.json"])
def test_a_damaged_file_of_the_run_is_named_when_the_page_is_written(whole, name):
    (whole / name).write_text("epoch,step,train/loss\nzero,1,0.5\n" if name.endswith("csv") else "{")
    with pytest.raises(UserError, match=rf"^{whole / name} cannot be read .*: mend or remove it, and evaluate again$"):
        write_page(whole)
    (whole / name).unlink()
    write_page(whole)


class Void(torch.nn.Module):
    """A loss module whose embedding and abnormality are not finite for some samples."""

    def __init__(self, inner, share):
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, feature_map):
        output = self.inner(feature_map)
        bad = (
            feature_map.flatten(1).sum(1).frac() < self.share if self.share < 1 else torch.ones(len(feature_map)).bool()
        )
        return replace(output, embedding=output.embedding.masked_fill(bad[:, None], math.nan))

    def anomaly(self, output):
        return output.embedding.sum(1)

    def evidence(self, feature_map, output):
        return self.inner.evidence(feature_map, output)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_embeddings_that_are_not_finite_are_said_and_json_stays_strict(classifier, tmp_path, share):
    classifier.loss = Void(classifier.loss, share)
    run(classifier, tmp_path)
    text = (tmp_path / "robustness" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in summary.json"))
    assert any("embeddings of" in remark and "not finite" in remark for remark in summary["remarks"])
    assert summary["attacks"].keys() == suite().keys()
    write_page(tmp_path)
