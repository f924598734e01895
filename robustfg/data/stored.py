"""The splits of a run as they are kept with it: by name, so that files that come or go move no sample elsewhere."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robustfg.core.errors import UserError
from robustfg.data.source import Split
from robustfg.data.splits import Positions

SCHEMA = 2
"""Of ``splits.json``; 1 held positions."""
LARGEST = 2**31
"""Bytes to which stored splits may unpack."""


@dataclass(frozen=True)
class Members:
    """The samples of a split."""

    ids: Positions
    """``(N,)``: of the batches and records of the run; positions in the source's split when they were drawn."""
    keys: Sequence[str]
    labels: Positions
    """``(N,)``."""
    sizes: NDArray[np.int64] | None = None
    """Bytes of every file, ``(N,)``; None where images are no files."""


@dataclass(frozen=True)
class Splits:
    """Which samples a run trains, chooses and tests on. ``test`` is all of it, whatever ``max_test_samples`` says."""

    classes: tuple[str, ...]
    origin: str | None
    """What else tells one data set from another whose keys are the same, such as the seed of drawn images."""
    carved: bool
    """Whether ``val`` is a part of the source's training split."""
    members: Mapping[str, Members]
    """By ``"train"``, ``"val"`` and ``"test"``."""

    def as_plain(self) -> dict[str, Any]:
        """Content of ``splits.json``: the keys by split, and what else belongs to them, in the same order."""
        split = self.members.items()
        return {
            "schema": SCHEMA,
            "classes": list(self.classes),
            "origin": self.origin,
            "carved": self.carved,
            **{name: list(members.keys) for name, members in split},
            "ids": {name: members.ids.tolist() for name, members in split},
            "labels": {name: members.labels.tolist() for name, members in split},
            "sizes": {name: None if members.sizes is None else members.sizes.tolist() for name, members in split},
        }

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Splits":
        """Reads what ``as_plain`` gave. Raises ``UserError`` for anything else."""

        def numbers(part: str, name: str) -> Positions:
            return np.asarray(content[part][name], np.int64).reshape(len(content[name]))

        try:
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']}")
            members = {
                name: Members(
                    numbers("ids", name),
                    [str(key) for key in content[name]],
                    numbers("labels", name),
                    None if content["sizes"][name] is None else numbers("sizes", name),
                )
                for name in ("train", "val", "test")
            }
            classes = tuple(str(name) for name in content["classes"])
            if any(((m.labels < 0) | (m.labels >= len(classes))).any() or (m.ids < 0).any() for m in members.values()):
                raise ValueError("a label or id is out of range")
            if any(len({*m.keys}) < len(m.keys) or len({*m.ids.tolist()}) < len(m.ids) for m in members.values()):
                raise ValueError("a sample is there twice")
            return cls(classes, content["origin"], bool(content["carved"]), members)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the stored splits are damaged ({error!r})") from error

    def same(self, other: "Splits") -> bool:
        """Whether the same samples with the same labels and ids are in the same splits."""
        return (self.classes, self.origin, self.carved) == (other.classes, other.origin, other.carved) and all(
            len(mine.ids) == len(theirs.ids)
            and np.array_equal(mine.ids, theirs.ids)
            and np.array_equal(mine.labels, theirs.labels)
            and all(key == known for key, known in zip(mine.keys, theirs.keys, strict=True))
            and (mine.sizes is None or theirs.sizes is None or np.array_equal(mine.sizes, theirs.sizes))
            for mine, theirs in ((self.members[name], other.members[name]) for name in self.members)
        )

    def packed(self) -> str:
        """The same as a short text, for checkpoints: a tenth of the size."""
        return base64.b85encode(zlib.compress(json.dumps(self.as_plain()).encode(), 6)).decode()

    @classmethod
    def unpacked(cls, text: str) -> "Splits":
        """Reads what ``packed`` gave. Raises ``UserError`` for anything else."""
        try:
            content = zlib.decompressobj().decompress(base64.b85decode(text), LARGEST)
            return cls.from_plain(json.loads(content))
        except (ValueError, zlib.error, TypeError) as error:
            raise UserError(f"the stored splits are damaged ({type(error).__name__})") from error


@runtime_checkable
class Drawn(Protocol):
    """A source that draws its own test split, and can take one that was drawn before."""

    def take(self, train: Members, test: Members, val: Members | None) -> None:
        """Makes these samples its splits, each at the position of its id.

        Args:
            train: all that the source's training split held, a validation split carved from it included.
            test: the same of the test split.
            val: of the source's own validation split; None where it has none.
        """

    def labels_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Classes of today by key, ``(N,)``; -1 where there is no such sample."""


def several(names: Sequence[str], what: str) -> str:
    """How many there are and the first of them, as a subject that goes on."""
    return f"{len(names):,} {what} ({names[0]}{', …' if len(names) > 1 else ''}) {'is' if len(names) == 1 else 'are'}"


def by_id(*parts: Members) -> Members:
    """Samples of several splits as one, in the order of their ids, which count from 0 without a gap."""
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids)
    if not np.array_equal(ids[order], np.arange(len(ids))):
        raise UserError("the stored splits are damaged (ids do not count from 0)")
    keys = [key for part in parts for key in part.keys]
    sizes = [part.sizes for part in parts if part.sizes is not None]
    return Members(
        ids[order],
        [keys[place] for place in order.tolist()],
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate(sizes)[order] if len(sizes) == len(parts) else None,
    )


def found_in(split: Split, members: Members) -> Positions:
    """Where the samples lie in a split of today, ``(N,)``; -1 for those that it does not hold."""
    keys, ids = split.keys, members.ids
    if len(ids) and ids.max() < len(keys) and all(keys[i] == key for i, key in zip(ids, members.keys, strict=True)):
        return ids
    place = {key: position for position, key in enumerate(keys)}
    return np.array([place.get(key, -1) for key in members.keys], np.int64).reshape(len(ids))
