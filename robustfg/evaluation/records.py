"""The record of evidence: one row per sample, attack and restart, written as it happens and resumable."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

WAIT = 600.0
"""Seconds for which a process waits while another one reads all of its file."""
CLEAN = "clean"

SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "label": pa.int64(),
        "attack": pa.string(),
        "restart": pa.int64(),
        "prediction": pa.int64(),
        "correct": pa.bool_(),
        "margin": pa.float64(),
        "norm": pa.float64(),
        "anomaly": pa.float64(),
        "first_success": pa.int64(),
        "forwards": pa.int64(),
        "backwards": pa.int64(),
        "dead_gradient": pa.bool_(),
        "borderline": pa.bool_(),
        "seconds": pa.float64(),
    }
)
"""Columns of ``records.parquet``; ``first_success`` is -1 where there was none.

After them come nullable float64 columns ``map/measure``, from the rows' ``evidence``: see ``localisation.localise``.
"""

PERTURBATION_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "attack": pa.string(),
        "restart": pa.int64(),
        "margin": pa.float64(),
        "dtype": pa.string(),
        "shape": pa.list_(pa.int64()),
        "delta": pa.binary(),
    }
)
"""Columns of ``perturbations/*.parquet``."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Perturbation:
    """What broke a sample, so that anybody can apply it again."""

    index: int
    attack: str
    restart: int
    margin: float
    delta: NDArray[Any]
    """``(C, H, W)``: int8 in units of 1/255 where the rounded image is still misclassified, else float32."""


class RecordStore:
    """One SQLite file per process, so that a killed evaluation continues where it was.

    Rows belong to an attack's fingerprint (weights, samples and settings); rows of another fingerprint are ignored.

    Args:
        folder: where the files lie, shared by all processes.
        rank: this process.
        fingerprints: of every attack, and of ``"clean"``.
    """

    def __init__(self, folder: Path, rank: int, fingerprints: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rank, self.fingerprints = folder, rank, dict(fingerprints)
        self.database = sqlite3.connect(self._path(rank), timeout=WAIT)
        self.database.execute("PRAGMA journal_mode=TRUNCATE")
        self.database.execute(
            f'CREATE TABLE IF NOT EXISTS records ({_STORED}, fingerprint, PRIMARY KEY (fingerprint, "index", restart))'
        )
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS perturbations "
            '("index" INTEGER, fingerprint, attack, restart, margin, dtype, shape, delta BLOB, '
            'PRIMARY KEY (fingerprint, "index"))'
        )
        self.done = {(row["attack"], row["index"]) for row in self._read(sorted(folder.glob(_PATTERN)))}

    def _path(self, rank: int) -> Path:
        return self.folder / _PATTERN.replace("*", f"{rank:05d}")

    def add(self, rows: Iterable[Row], perturbations: Iterable[Perturbation]) -> None:
        """Writes the rows of one attack on some samples, all or none; a sample keeps its worst perturbation."""
        values = [
            (*(row[name] for name in SCHEMA.names), json.dumps(row.get("evidence")), self.fingerprints[row["attack"]])
            for row in rows
        ]
        with self.database:
            self.database.executemany(
                f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * (len(SCHEMA) + 2))})", values
            )
            self.database.executemany(
                "INSERT INTO perturbations VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                'ON CONFLICT (fingerprint, "index") DO UPDATE SET restart=excluded.restart, margin=excluded.margin, '
                "dtype=excluded.dtype, shape=excluded.shape, delta=excluded.delta WHERE excluded.margin < margin",
                [
                    (p.index, self.fingerprints[p.attack], p.attack, p.restart, p.margin, str(p.delta.dtype),
                     ",".join(map(str, p.delta.shape)), p.delta.tobytes())
                    for p in perturbations
                ],
            )  # fmt: skip

    def own_rows(self, world: int) -> list[dict[str, Any]]:
        """Rows that this process answers for: its own, and on rank 0 those of ranks that no longer exist."""
        return self._read(self._own_files(world))

    def worst_margins(self, world: int) -> dict[int, float]:
        """The smallest margin at which the files of ``own_rows`` hold a perturbation, by sample."""
        worst: dict[int, float] = {}
        for index, margin in self._stored_perturbations(world, "margin"):
            worst[index] = min(margin, worst.get(index, margin))
        return worst

    def perturbations(self, world: int, wanted: Mapping[int, float]) -> Iterator[Perturbation]:
        """One perturbation of every wanted sample in the files of ``own_rows``: the one with the given margin."""
        given = set()
        stored = self._stored_perturbations(world, "margin, attack, restart, dtype, shape, delta")
        for index, margin, attack, restart, dtype, shape, delta in stored:
            if wanted.get(index) == margin and index not in given:
                given.add(index)
                size = tuple(map(int, shape.split(",")))
                yield Perturbation(index, attack, restart, margin, np.frombuffer(delta, dtype).reshape(size))

    def _stored_perturbations(self, world: int, columns: str) -> Iterator[tuple[Any, ...]]:
        known = set(self.fingerprints.values())
        for path in self._own_files(world):
            with sqlite3.connect(path, timeout=WAIT) as database:
                query = f'SELECT fingerprint, "index", {columns} FROM perturbations'
                for fingerprint, *row in database.execute(query):
                    if fingerprint in known:
                        yield tuple(row)

    def write_perturbations(self, folder: Path, world: int, wanted: Mapping[int, float]) -> None:
        """Writes the wanted perturbations in the files of ``own_rows`` to a Parquet file of this rank."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"part-{self.rank:05d}.parquet"
        beside = target.with_suffix(".tmp")
        with pq.ParquetWriter(beside, PERTURBATION_SCHEMA, compression="zstd") as writer:
            for p in self.perturbations(world, wanted):
                row = (p.index, p.attack, p.restart, p.margin, str(p.delta.dtype), p.delta.shape, p.delta.tobytes())
                writer.write_table(pa.table([[value] for value in row], schema=PERTURBATION_SCHEMA))
        beside.replace(target)

    def close(self) -> None:
        """Leaves the files to others."""
        self.database.close()

    def discard(self, world: int) -> None:
        """Deletes the files of ``own_rows``, whose rows are safe elsewhere."""
        self.close()
        for path in self._own_files(world):
            for file in path.parent.glob(path.name + "*"):
                file.unlink()

    def _own_files(self, world: int) -> list[Path]:
        live = {self._path(rank) for rank in range(world)}
        orphans = [path for path in sorted(self.folder.glob(_PATTERN)) if path not in live] if self.rank == 0 else []
        return [self._path(self.rank), *orphans]

    def _read(self, paths: Iterable[Path]) -> list[dict[str, Any]]:
        rows, known = [], sorted({*self.fingerprints.values()})
        query = f"SELECT {_STORED}, fingerprint FROM records WHERE fingerprint IN ({', '.join('?' * len(known))})"
        for path in paths:
            with sqlite3.connect(path, timeout=WAIT) as database:
                try:
                    cursor = database.execute(query, known)
                except sqlite3.OperationalError:  # another rank has only just created its file
                    continue
                for *values, evidence, fingerprint in cursor:
                    row: dict[str, Any] = dict(zip(SCHEMA.names, values, strict=True))
                    if self.fingerprints.get(row["attack"]) == fingerprint:
                        row |= {name: bool(row[name]) for name in ("correct", "dead_gradient", "borderline")}
                        told = json.loads(evidence)
                        rows.append(row | ({"evidence": told} if told else {}))
        return rows


_PATTERN = "unfinished-*.sqlite"
_STORED = ", ".join(f'"{name}"' for name in (*SCHEMA.names, "evidence"))


def table_of(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table, sorted by attack, restart and index; every piece of evidence is a column."""
    flat = [{**row, **row.get("evidence", {})} for row in rows]
    measures = sorted({name for row in flat for name in row if "/" in name})
    schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in measures)])
    table = pa.Table.from_pylist(flat, schema=schema)
    return table.sort_by([("attack", "ascending"), ("restart", "ascending"), ("index", "ascending")])


def write_table(table: pa.Table, path: Path) -> None:
    """Writes Parquet beside and renames."""
    beside = path.with_suffix(".tmp")
    pq.write_table(table, beside, compression="zstd")
    beside.replace(path)


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as a NumPy array."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False))
