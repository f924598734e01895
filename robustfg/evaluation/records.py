"""The record of evidence: one row per sample, attack and restart, written as it happens and resumable."""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.core.files import refusal, write_atomically

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
GROUP = 16 * 2**20
"""Bytes of perturbations that are written at once: fewer groups are read faster, larger ones take memory."""

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

    Attributes:
        done: by kind of rows and sample, how many restarts an interrupted evaluation has written.

    Raises:
        UserError: naming the file, where it cannot be written or is damaged. What was added before is kept.
    """

    def __init__(self, folder: Path, rank: int, fingerprints: Mapping[str, str]) -> None:
        self.folder, self.rank, self.fingerprints = folder, rank, dict(fingerprints)
        self.path = self._path(rank)
        with _named(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(self.path, timeout=WAIT)
            self.database.execute("PRAGMA journal_mode=TRUNCATE")
            self.database.execute(
                f"CREATE TABLE IF NOT EXISTS records ({_STORED}, state, fingerprint, "
                'PRIMARY KEY (fingerprint, "index", restart))'
            )
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS perturbations "
                '("index" INTEGER, fingerprint, attack, restart, margin, dtype, shape, delta BLOB, '
                'PRIMARY KEY (fingerprint, "index"))'
            )
        self.done: Counter[tuple[str, int]] = Counter()
        for found in self._select('attack, "index", fingerprint', self._all_files()):
            if self.fingerprints.get(found[0]) == found[2]:
                self.done[found[0], found[1]] += 1

    def _path(self, rank: int) -> Path:
        return self.folder / _PATTERN.replace("*", f"{rank:05d}")

    def add(self, rows: Iterable[Row], perturbations: Iterable[Perturbation]) -> None:
        """Writes rows and perturbations, all or none; a sample keeps an attack's worst perturbation."""
        values = [
            (*(row[name] for name in SCHEMA.names), json.dumps(row.get("evidence")), json.dumps(row.get("state")),
             self.fingerprints[row["attack"]])
            for row in rows
        ]  # fmt: skip
        with _named(self.path), self.database:
            self.database.executemany(
                f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * (len(SCHEMA) + 3))})", values
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
        known = sorted({*self.fingerprints.values()})
        chosen = f"fingerprint IN ({', '.join('?' * len(known))})"
        found = self._select(f"{_STORED}, fingerprint", self._own_files(world), chosen, known)
        return [_row(values) for *values, print_ in found if self.fingerprints.get(values[_ATTACK]) == print_]

    def lacks(self, attack: str, indices: Iterable[int], restarts: int = 1) -> bool:
        """Whether rows of any of these samples are to be measured."""
        return any(self.done[attack, index] < restarts for index in indices)

    def known(self, attack: str, indices: Iterable[int]) -> dict[tuple[int, int], dict[str, Any]]:
        """Rows of an attack by restart and sample, of all processes; ``state`` is where the search left the sample."""
        wanted = [index for index in indices if (attack, index) in self.done]
        rows = {}
        if wanted:
            chosen = f'fingerprint = ? AND "index" IN ({", ".join("?" * len(wanted))})'
            columns, values = f"{_STORED}, state", [self.fingerprints[attack], *wanted]
            for *found, state in self._select(columns, self._all_files(), chosen, values):
                row = _row(found)
                if row["attack"] == attack:
                    rows[row["restart"], row["index"]] = row | {"state": json.loads(state)}
        return rows

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
        for fingerprint, *row in self._select(
            f'fingerprint, "index", {columns}', self._own_files(world), of="perturbations"
        ):
            if fingerprint in known:
                yield tuple(row)

    def write_perturbations(self, folder: Path, world: int, wanted: Mapping[int, float]) -> None:
        """Writes the wanted perturbations in the files of ``own_rows`` to a Parquet file of this rank."""
        with (
            write_atomically(folder / f"part-{self.rank:05d}.parquet") as file,
            pq.ParquetWriter(file, PERTURBATION_SCHEMA, compression="zstd") as writer,
        ):
            group: list[tuple[Any, ...]] = []
            for p in self.perturbations(world, wanted):
                delta = p.delta.tobytes()
                group.append((p.index, p.attack, p.restart, p.margin, str(p.delta.dtype), p.delta.shape, delta))
                if len(group) * len(delta) >= GROUP:
                    _write_group(writer, group)
                    group = []
            _write_group(writer, group)

    def close(self) -> None:
        """Leaves the files to others."""
        self.database.close()

    def discard(self, world: int) -> None:
        """Deletes the files of ``own_rows``, whose rows are safe elsewhere."""
        self.close()
        for path in self._own_files(world):
            for file in path.parent.glob(path.name + "*"):
                file.unlink()

    def _all_files(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN))

    def _own_files(self, world: int) -> list[Path]:
        live = {self._path(rank) for rank in range(world)}
        orphans = [path for path in self._all_files() if path not in live] if self.rank == 0 else []
        return [self.path, *orphans]

    def _select(
        self, columns: str, paths: Iterable[Path], where: str = "true", values: Iterable[Any] = (), of: str = "records"
    ) -> Iterator[tuple[Any, ...]]:
        for path in paths:
            with _named(path), contextlib.closing(sqlite3.connect(path, timeout=WAIT)) as database:
                if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [of]).fetchone():
                    # Another rank may have only just created its file.
                    yield from database.execute(f"SELECT {columns} FROM {of} WHERE {where}", list(values))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of SQLite and of the file system in one line that names the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "column" in str(error):
            raise UserError(f"{path} was written by another version of robustfg; remove it") from error
        raise UserError(f"{path}: {error}; what it holds is kept, the same command continues") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and what it held is measured again") from error
    except OSError as error:
        raise refusal(path, error) from error


_PATTERN = "unfinished-*.sqlite"
_STORED = ", ".join(f'"{name}"' for name in (*SCHEMA.names, "evidence"))
_ATTACK = SCHEMA.get_field_index("attack")


def _row(values: Iterable[Any]) -> dict[str, Any]:
    *values, evidence = values
    row: dict[str, Any] = dict(zip(SCHEMA.names, values, strict=True))
    row |= {name: bool(row[name]) for name in ("correct", "dead_gradient", "borderline")}
    told = json.loads(evidence)
    return row | ({"evidence": told} if told else {})


def _write_group(writer: pq.ParquetWriter, group: list[tuple[Any, ...]]) -> None:
    if group:
        columns = [list(column) for column in zip(*group, strict=True)]
        writer.write_table(pa.table(columns, schema=PERTURBATION_SCHEMA))


def table_of(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table, sorted by attack, restart and index; every piece of evidence is a column."""
    flat = [{**row, **row.get("evidence", {})} for row in rows]
    measures = sorted({name for row in flat for name in row if "/" in name})
    schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in measures)])
    table = pa.Table.from_pylist(flat, schema=schema)
    return table.sort_by([("attack", "ascending"), ("restart", "ascending"), ("index", "ascending")])


def write_table(table: pa.Table, path: Path) -> None:
    """Writes Parquet, whole or not at all."""
    with write_atomically(path) as file:
        pq.write_table(table, file, compression="zstd")


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as a NumPy array."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False))
