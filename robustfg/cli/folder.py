"""The folder of a run: where it lies, which process group holds it, and what it was asked for."""

import atexit
import errno
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from robustfg.cli.config import from_yaml
from robustfg.cli.processes import is_first
from robustfg.core.errors import UserError
from robustfg.core.files import refusal, write_text

CLAIM = ".claim"
"""File that the first process of a group keeps locked while the group works in the folder."""

UNBEGUN = {CLAIM, ".hydra", "config.yaml", "provenance.json", "splits.json", "checkpoints", "metrics.csv"}
"""What a command writes before it has computed anything."""

TRAINED = ("seed", "data", "model", "loss", "training", "optimizer", "scheduler", "init_from")
"""Parts of the config that a continued run must share with what its folder holds."""

MACHINE = {"num_workers", "cache", "eval_batch_size", "max_test_samples", "root", "download"}
"""Data options that do not change what is learned."""

FOUND = ("checkpoint", "seed", "epsilon", "data", "model", "loss", "attack", "detector", "unknown", "evaluation")
"""Parts that an evaluation must share with what its folder holds."""


def folder_of(default: str, about: str = "") -> Path:
    """The run's folder, absolute. Hydra creates none, so that a refused command leaves none.

    Args:
        default: where a single run's files go; ``hydra.run.dir`` takes precedence where it is given.
        about: added to the number of a multirun's job, which names its folder below ``hydra.sweep.dir``;
            ``hydra.sweep.subdir`` takes precedence.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        subdir = hydra.sweep.subdir
        return (Path(hydra.sweep.dir) / (f"{hydra.job.num}{about}" if subdir == "." else subdir)).absolute()
    return Path(default if hydra.run.dir == "." else hydra.run.dir).absolute()


@contextmanager
def claimed(folder: Path, command: Sequence[str]) -> Iterator[None]:
    """Holds the folder for this process group, which its first process does for all.

    The system lets go of a dead process's lock, also on shared file systems. Where the command ends in an error before
    anything was computed, a folder that was not there before is removed again.

    Raises:
        UserError: where another group holds the folder, or where it cannot be written.
    """
    if not is_first():
        yield
        return
    created = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder)
    except OSError as error:
        raise refusal(folder, error) from error
    about = {"host": platform.node(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(about | {"command": list(command)}) + "\n").encode(), 0)
        yield
    except BaseException as error:
        worthless = UNBEGUN if isinstance(error, UserError) else UNBEGUN - {"metrics.csv"}
        worthless = worthless if isinstance(error, Exception) else {CLAIM}
        if not any(folder.glob("checkpoints/*")):
            _remove(created, worthless)
        raise
    finally:
        with suppress(OSError):
            (folder / CLAIM).unlink()
        os.close(descriptor)


class SweepFolder(Callback):
    """Removes a multirun's folder at the end where no job has left anything beside Hydra's own note."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        atexit.register(_remove, _missing(Path(config.hydra.sweep.dir).absolute()), {"multirun.yaml"})


def _missing(folder: Path) -> list[Path]:
    """A folder and those above it, as far as there are none."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _remove(created: Sequence[Path], worthless: set[str]) -> None:
    """Removes folders that this command has created where they hold nothing else, the deepest first."""
    with suppress(OSError):
        if created and {*os.listdir(created[0])} <= worthless:
            shutil.rmtree(created[0])
            for place in created[1:]:
                place.rmdir()


def refuse_held(folder: Path) -> None:
    """Raises ``UserError`` where another process group works in the folder; claims nothing."""
    if is_first() and (folder / CLAIM).exists():
        with suppress(OSError):  # said where the folder is claimed
            os.close(_locked(folder))


def _locked(folder: Path) -> int:
    """The descriptor of the folder's claim, which this process has locked."""
    path = folder / CLAIM
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, forked loaders do not inherit it
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:  # let go and removed since it was opened
            pass
        except OSError as error:
            text = os.pread(descriptor, 65536, 0).decode(errors="replace")
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"{folder} is in use by {_holder(text)}; choose another run_name, or wait") from None
            if _may_live(text):  # a file system without locks
                raise UserError(
                    f"{folder} is in use by {_holder(text)}; choose another run_name, or remove {path} if it has ended"
                ) from None
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.close(descriptor)


def _about(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        about = json.loads(text)
        if isinstance(about, dict):
            return about
    return {}


def _holder(text: str) -> str:
    about = _about(text)
    if not about:
        return "another command"
    return f"process {about.get('pid')} on {about.get('host')} since {about.get('since')}"


def _may_live(text: str) -> bool:
    about = _about(text)
    if not about or about.get("host") != platform.node():
        return bool(about)
    try:
        os.kill(int(about["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def refuse_another_request(config: Mapping[str, Any], folder: Path, *, training: bool) -> None:
    """What was asked must stand beside what is found: a name given twice must mean the same.

    Args:
        config: of this command.
        folder: of the run.
        training: whether the command trains; else it evaluates only.

    Raises:
        UserError: where the folder holds something else.
    """
    stored = _stored(config, folder)
    if stored is None:
        return
    machine = MACHINE if training else MACHINE - {"max_test_samples"}
    parts: Sequence[str] = TRAINED if training else FOUND
    differing = _differing(config, stored, parts, machine)
    what = "a run" if training else "an evaluation"
    if differing is None and training and (folder / "robustness" / "summary.json").exists():
        differing = _differing(config, stored, FOUND[1:], MACHINE - {"max_test_samples"})
        what = "an evaluation"
    if differing is not None:
        hint = "; to evaluate it otherwise run robustfg.evaluate" if training and what == "an evaluation" else ""
        raise UserError(
            f"run_name={config['run_name']}: {folder} holds {what} with another {differing} (see its config.yaml); "
            f"choose another run_name or remove the folder{hint}"
        )


def _stored(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """The config of what the folder holds; None where it holds nothing."""
    path, last = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        from robustfg.checkpoint import Checkpoint  # only here, so that --help needs no torch

        return Checkpoint.read(last, f"run_name={config['run_name']}").config if last.exists() else None
    try:
        stored = from_yaml(path)
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} is damaged ({reason}); put it right, remove the folder or choose another run_name"
        ) from error
    return stored


def _differing(
    config: Mapping[str, Any], stored: Mapping[str, Any], parts: Sequence[str], machine: set[str]
) -> str | None:
    """The first part, or option of the data, that differs."""
    for part in parts:
        ours, theirs = (_essence(given.get(part), machine) for given in (config, stored))
        if part in ("checkpoint", "init_from") and None not in (ours, theirs):
            ours, theirs = (str(Path(path).expanduser().resolve()) for path in (ours, theirs))
        if ours != theirs:
            return part
    return None


def _essence(part: Any, machine: set[str]) -> Any:
    """A part of the config without what may change from machine to machine."""
    return {k: _essence(v, machine) for k, v in part.items() if k not in machine} if isinstance(part, dict) else part


def write_hydra(folder: Path) -> None:
    """``.hydra/`` as Hydra would have written it."""
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    write_text(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(hydra.overrides.task))
    write_text(folder / ".hydra" / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
