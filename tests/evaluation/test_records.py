import numpy as np
import pyarrow.parquet as pq
from toy import row

from robustfg.evaluation.records import CLEAN, GROUP, Perturbation, RecordStore, table_of, write_table

PRINTS = {CLEAN: "c", "a": "x", "b": "y"}


def broken(index, margin, attack="a", value=3):
    return Perturbation(index, attack, 0, margin, np.full((3, 2, 2), value, np.int8))


def test_rows_survive_a_process_that_never_closed_its_store(tmp_path):
    RecordStore(tmp_path, 0, PRINTS).add([row(4, "a", 0, False)], [broken(4, -1.0)])
    again = RecordStore(tmp_path, 0, PRINTS)
    assert set(again.done) == {("a", 4)}
    assert again.own_rows(1) == [row(4, "a", 0, False)]


def test_rows_of_other_weights_or_settings_are_ignored(tmp_path):
    RecordStore(tmp_path, 0, PRINTS).add([row(4, "a", 0, False), row(4, "b", 0, True)], [broken(4, -1.0)])
    again = RecordStore(tmp_path, 0, PRINTS | {"a": "other"})
    assert set(again.done) == {("b", 4)}
    assert again.worst_margins(1) == {}


def test_every_row_has_one_owner_whatever_the_number_of_processes(tmp_path):
    for rank in range(3):
        RecordStore(tmp_path, rank, PRINTS).add([row(rank, "a", 0, True)], [])
    stores = [RecordStore(tmp_path, rank, PRINTS) for rank in range(2)]
    assert all(set(store.done) == {("a", 0), ("a", 1), ("a", 2)} for store in stores)
    assert sorted(found["index"] for store in stores for found in store.own_rows(2)) == [0, 1, 2]


def test_a_sample_keeps_its_worst_perturbation(tmp_path):
    store = RecordStore(tmp_path, 0, PRINTS)
    store.add([row(4, "a", 0, False)], [broken(4, -1.0, "a", 1)])
    store.add([row(4, "b", 0, False)], [broken(4, -2.0, "b", 2)])
    store.add([row(4, "a", 0, False)], [broken(4, -0.5, "a", 3)])
    assert store.worst_margins(1) == {4: -2.0}
    (kept,) = store.perturbations(1, {4: -2.0})
    assert (kept.attack, kept.margin, int(kept.delta[0, 0, 0])) == ("b", -2.0, 2)


def test_perturbations_come_back_from_parquet_as_they_were(tmp_path):
    store = RecordStore(tmp_path / "r", 0, PRINTS)
    delta = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    store.add([], [broken(1, -1.0), Perturbation(2, "a", 0, -1.0, delta)])
    store.write_perturbations(tmp_path / "p", 1, {1: -1.0, 2: -1.0})
    rows = pq.read_table(tmp_path / "p").to_pylist()
    read = {r["index"]: np.frombuffer(r["delta"], r["dtype"]).reshape(r["shape"]) for r in rows}
    assert np.array_equal(read[1], np.full((3, 2, 2), 3, np.int8))
    assert np.array_equal(read[2], delta)


def test_perturbations_are_written_in_groups_of_bounded_size(tmp_path, monkeypatch):
    store = RecordStore(tmp_path / "r", 0, PRINTS)
    store.add([], [broken(i, -1.0, value=i) for i in range(100)])
    for size, groups in ((GROUP, 1), (12 * 30, 4)):
        monkeypatch.setattr("robustfg.evaluation.records.GROUP", size)
        store.write_perturbations(tmp_path / "p", 1, dict.fromkeys(range(100), -1.0))
        file = pq.ParquetFile(tmp_path / "p" / "part-00000.parquet")
        assert file.num_row_groups == groups
        assert [row["index"] for row in file.read().to_pylist()] == list(range(100))
    store.write_perturbations(tmp_path / "none", 1, {})
    assert pq.read_table(tmp_path / "none").num_rows == 0


def test_discard_leaves_nothing_unfinished(tmp_path):
    stores = [RecordStore(tmp_path, rank, PRINTS) for rank in range(2)]
    RecordStore(tmp_path, 5, PRINTS)
    for store in stores:
        store.discard(2)
    assert list(tmp_path.iterdir()) == []


def test_table_is_sorted_and_written_whole(tmp_path):
    rows = [row(2, "b", 0, True), row(1, "b", 0, True), row(9, "a", 1, False), row(9, "a", 0, False)]
    write_table(table_of(rows), tmp_path / "records.parquet")
    read = pq.read_table(tmp_path / "records.parquet")
    assert list(zip(*(read[name].to_pylist() for name in ("attack", "restart", "index")), strict=True)) == [
        ("a", 0, 9), ("a", 1, 9), ("b", 0, 1), ("b", 0, 2),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["records.parquet"]


def test_an_older_perturbation_of_other_settings_does_not_hide_a_new_one(tmp_path):
    RecordStore(tmp_path, 0, PRINTS).add([row(4, "a", 0, False)], [broken(4, -9.0)])
    again = RecordStore(tmp_path, 0, PRINTS | {"a": "other"})
    again.add([row(4, "a", 0, False)], [broken(4, -1.0, value=5)])
    assert again.worst_margins(1) == {4: -1.0}
    (kept,) = again.perturbations(1, {4: -1.0})
    assert int(kept.delta[0, 0, 0]) == 5


def test_a_later_restart_replaces_a_perturbation_only_by_a_worse_one(tmp_path):
    store = RecordStore(tmp_path, 0, PRINTS)
    for margin, value in ((-1.0, 1), (-2.0, 2), (-0.5, 3)):
        store.add([row(4, "a", 0, False)], [broken(4, margin, value=value)])
    assert store.worst_margins(1) == {4: -2.0}
    (kept,) = store.perturbations(1, {4: -2.0})
    assert int(kept.delta[0, 0, 0]) == 2
