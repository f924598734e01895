"""What is written appears whole under its name or not at all, and a refusal names the path."""

import csv
import io
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from robustfg.core.errors import UserError
from robustfg.core.files import write_atomically, write_text

BIG = np.random.default_rng(0).random(30_000)


def _rows(file: BinaryIO, values: Any) -> None:
    csv.writer(io.TextIOWrapper(file, newline="")).writerows([value] for value in values)


WAYS: dict[str, tuple[Callable[[BinaryIO, Any], object], Callable[[Path], Any]]] = {
    "torch": (lambda file, x: torch.save(torch.from_numpy(x), file), lambda path: torch.load(path).numpy()),
    "numpy": (lambda file, x: np.savez_compressed(file, x=x), lambda path: np.load(path)["x"]),
    "parquet": (lambda file, x: pq.write_table(pa.table({"x": x}), file), lambda path: pq.read_table(path)["x"]),
    "csv, which closes the file": (_rows, lambda path: np.loadtxt(path)),
}


@pytest.fixture
def full() -> Iterator[None]:
    """No file of this process can be longer than 100,000 bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("way", WAYS)
def test_what_any_library_writes_replaces_the_old_content_at_once(way: str, tmp_path: Path) -> None:
    write, read = WAYS[way]
    path = tmp_path / "new folder" / "file.npz"
    for values in (BIG[:10], BIG[:20]):
        with write_atomically(path) as file:
            write(file, values)
            assert not path.exists() or len(read(path)) == 10
        np.testing.assert_array_equal(read(path), values)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_one_line_and_the_old_content_stays(way: str, tmp_path: Path, full: None) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(UserError, match="^.*/file cannot be written: File too large$"), write_atomically(path) as file:
        WAYS[way][0](file, BIG)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_other_errors_and_interruptions_of_the_block_pass_and_leave_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    for error in (KeyboardInterrupt(), FileNotFoundError("what is read"), RuntimeError("CUDA")):
        with pytest.raises(type(error)) as raised, write_atomically(path):
            raise error
        assert raised.value is error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_what_cannot_be_a_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in {
        tmp_path: "it is a folder",
        tmp_path / "pipe": "it is a device or a pipe",
        tmp_path / "file" / "below": "is no folder",
        Path("/proc/none/file"): "No such file or directory",
    }.items():
        with pytest.raises(UserError, match=f"^{path} cannot be written: .*{reason}$"), write_atomically(path):
            pytest.fail("the block runs")


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    write_text(target, "old")
    link.symlink_to(target)
    write_text(link, "caf\udce9")
    assert link.is_symlink()
    assert target.read_bytes() == b"caf\xe9"


def test_the_leftover_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = (
        "import os, sys; from robustfg.core.files import write_atomically\n"
        "with write_atomically(sys.argv[1]) as file: file.write(b'new' * 9999); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -9
    assert [name.startswith(".file.") for name in os.listdir(tmp_path)] == [True]
    living = f".file.{platform.node()[:40]}.{os.getppid()}.partial"
    (tmp_path / living).touch()
    write_text(path, "whole")
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, living])
