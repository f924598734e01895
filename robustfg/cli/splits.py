"""Which samples a command may train and test on, given the checkpoint that it begins with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustfg.checkpoint import Checkpoint
from robustfg.core.errors import UserError
from robustfg.data.annotations import origin_of
from robustfg.data.datamodule import DataModule
from robustfg.data.files import FileSplit
from robustfg.data.following import follow
from robustfg.data.hygiene import Trained
from robustfg.data.stored import Members, Splits, several

Node = Mapping[str, Any]
DRAWING = ("test_fraction", "official_val", "train", "val", "test")
"""Options of sources by which splits are drawn or chosen."""


def follow_run(data: DataModule, last: Path, option: str) -> None:
    """A continued run goes on with the splits that it began with. Raises ``UserError`` where those are not here."""
    if not last.exists():
        return
    checkpoint = Checkpoint.read(last, option)
    checkpoint.expect_classes(data.classes)
    stored = splits_of(checkpoint)
    if stored is not None:
        follow(data, stored, whole=("train", "val"))
        _add_earlier(data, checkpoint)
    elif not _as_recorded(data, checkpoint):
        raise _changed(checkpoint)


def follow_checkpoint(data: DataModule, checkpoint: Checkpoint, node: Node, *, chosen: bool) -> None:
    """An evaluation tests on what the checkpoint's run has set aside for it.

    Args:
        data: what was asked for.
        checkpoint: what is evaluated.
        node: options of the data.
        chosen: whether the data was chosen for this evaluation; it may be another data set then.

    Raises:
        UserError: where samples that were trained on might be tested on.
    """
    stored = splits_of(checkpoint)
    if stored is None:
        recorded = _as_recorded(data, checkpoint)
        if recorded is False and not chosen:
            raise _changed(checkpoint)
        if not recorded:
            data.trained = {}
    elif _shared(data, stored) or not chosen:
        follow(data, stored)
        _add_earlier(data, checkpoint)
        before = _recipe(checkpoint.config["data"])
        for option, typed in _recipe(node).items():
            if chosen and typed != before.get(option):
                data.remarks.append(f"The run's own splits are used, not those that data.{option} would draw.")
    else:
        data.trained = _trained_of(data, stored, checkpoint)
        _add_earlier(data, checkpoint)
        data.remarks.append("No image of the run is among these: they are other data than it was trained on.")


def follow_start(data: DataModule, node: Node, start: Checkpoint) -> None:
    """A run that begins with another's weights must not test on what that one was trained on.

    Args:
        data: of the new run.
        node: its options.
        start: ``init_from``.

    Raises:
        UserError: where it would, and its splits were asked for otherwise than those.
    """
    stored = splits_of(start)
    if stored is None:
        _add_earlier(data, start, itself=True)
        return
    known = _shared(data, stored)
    own = data.splits().members["test"]
    leaked = [key for key in own.keys if known.get(key, "test") != "test"]
    if not leaked:
        _add_earlier(data, start, itself=True)
        return
    differing = [
        option for option, value in _recipe(node).items() if value != _recipe(start.config["data"]).get(option)
    ]
    if differing:
        raise UserError(
            f"init_from={start.path}: {several(leaked, 'test images')} among those that it was trained on; leave "
            f"data.{differing[0]} as it was there"
        )
    follow(data, stored)
    _add_earlier(data, start, itself=True)


def splits_of(checkpoint: Checkpoint) -> Splits | None:
    """The splits of a checkpoint, or of its run's folder; None where an earlier version kept positions only."""
    try:
        if checkpoint.splits is not None:
            return Splits.unpacked(checkpoint.splits)
        beside = checkpoint.path.absolute().parent.parent / "splits.json"
        if not beside.is_file():
            return None
        content = json.loads(beside.read_text())
        return Splits.from_plain(content) if "schema" in content else None
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{checkpoint.option}={checkpoint.path}: {error}") from error


def _shared(data: DataModule, stored: Splits) -> dict[str, str]:
    """The split in the run of every sample that is here, by key; files are the same ones if as large as they were."""
    if stored.origin != origin_of(data.source):
        return {}
    sizes = _by_key(data.splits().members)
    return {
        key: name
        for name, part in stored.members.items()
        for key, size in _sized(part)
        if key in sizes and (size is None or sizes[key] is None or sizes[key] == size)
    }


def _sized(part: Members) -> list[tuple[str, int | None]]:
    sizes: list[Any] = [None] * len(part.keys) if part.sizes is None else part.sizes.tolist()
    return list(zip(part.keys, sizes, strict=True))


def _by_key(members: Mapping[str, Members]) -> dict[str, int | None]:
    return {key: size for part in members.values() for key, size in _sized(part)}


def _trained_of(data: DataModule, stored: Splits, checkpoint: Checkpoint) -> dict[str, Trained]:
    """What a run was trained on: by name where it is of the data at hand, else the files that lie where they lay."""
    parts = {name: stored.members[name] for name in ("train", "val")}
    if _shared(data, stored):
        return {name: Trained(names=part.keys) for name, part in parts.items()}
    if stored.origin is not None or any(part.sizes is None for part in parts.values()):
        return {name: Trained(lacking=f"{name} images of other data are not at hand") for name in parts}
    root = checkpoint.config["data"].get("root")
    folder = Path(root if isinstance(root, str) else "").expanduser()
    found: dict[str, Trained] = {}
    for name, part in parts.items():
        assert part.sizes is not None
        sizes = np.array([_size_of(folder, key) if isinstance(root, str) else -1 for key in part.keys], np.int64)
        there = sizes == part.sizes
        gone = [key for key, here in zip(part.keys, there.tolist(), strict=True) if not here]
        images = FileSplit(folder, part.keys, part.labels, known_sizes=sizes), np.flatnonzero(there)
        lacking = f"{len(gone):,} {name} images no longer lie in {root} as they were" if gone else ""
        found[name] = Trained(images, gone, lacking, elsewhere=True)
    return found


def _size_of(folder: Path, key: str) -> int:
    """Bytes of a file below a folder, as a checkpoint names it; -1 where there is none."""
    if Path(key).is_absolute() or ".." in Path(key).parts:
        return -1
    try:
        return (folder / key).stat().st_size
    except (OSError, ValueError):
        return -1


def _add_earlier(data: DataModule, checkpoint: Checkpoint, *, itself: bool = False) -> None:
    """Adds what the runs were trained on whose weights a checkpoint's run began with, one after another."""
    known: set[str] = set()
    while True:
        if itself:
            theirs = {f"{name} of {checkpoint.path}": part for name, part in _trained_before(data, checkpoint).items()}
            data.trained = (data.trained or {}) | theirs
        itself, path = True, checkpoint.config.get("init_from")
        if path is None or str(path) in known:
            return
        known.add(str(path))
        try:
            checkpoint = Checkpoint.read(str(path), "init_from")
        except UserError:
            lacking = f"the run began with init_from={path}, which is gone with the names of its training images"
            data.trained = (data.trained or {}) | {"init_from": Trained(lacking=lacking)}
            return


def _trained_before(data: DataModule, start: Checkpoint) -> dict[str, Trained]:
    stored = splits_of(start)
    if stored is not None:
        return _trained_of(data, stored, start)
    recorded = _as_recorded(data, start) is True
    return {} if recorded else {"all": Trained(lacking=f"{start.path} has kept no names of its training images")}


def _recipe(node: Node) -> dict[str, Any]:
    """The options by which splits are drawn."""
    source = node.get("source") or {}
    kept = {key: node[key] for key in ("val_fraction", "split_seed") if key in node}
    return kept | {f"source.{key}": source[key] for key in DRAWING if key in source}


def _as_recorded(data: DataModule, checkpoint: Checkpoint) -> bool | None:
    """Whether an earlier version's run had the same training samples; None where it kept no record of them."""
    path = checkpoint.path.absolute().parent.parent / "provenance.json"
    try:
        recorded = json.loads(path.read_text())["splits"]
        return all(recorded[name]["ids_sha256"] == data.described(name)["ids_sha256"] for name in ("train", "val"))
    except OSError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore it, or remove it") from error


def _changed(checkpoint: Checkpoint) -> UserError:
    return UserError(
        f"{checkpoint.option}={checkpoint.path} was trained on other images than those that would be taken for "
        "training here, and an earlier version kept no names of them: restore the data as they were"
    )
