"""Which samples belong to which split: carving, subsets and their fingerprint."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def stratified(labels: Positions, fraction: float, seed: int) -> tuple[Positions, Positions]:
    """Sets aside a share of every class.

    A class of two or more samples gives at least one and keeps at least one; a single sample is kept.

    Args:
        labels: ``(N,)`` classes.
        fraction: share to set aside, in [0, 1].
        seed: chooses which samples.

    Returns:
        Positions kept and positions set aside, both sorted.
    """
    if fraction in (0, 1):
        everything, nothing = np.arange(len(labels)), np.arange(0)
        return (everything, nothing) if fraction == 0 else (nothing, everything)
    generator = np.random.default_rng(seed)
    aside = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        aside.append(members[:count])
    taken = np.sort(np.concatenate(aside)) if aside else np.arange(0)
    return np.setdiff1d(np.arange(len(labels)), taken), taken


def balanced_subset(labels: Positions, count: int, seed: int = 0) -> Positions:
    """``count`` positions that take the classes in turn, in an order that is random but fixed by ``seed``.

    A smaller subset is contained in every larger one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels))
    return np.sort(np.lexsort((rank, turn))[:count])


def manifest(keys: Sequence[str], sizes: Positions, labels: Positions) -> str:
    """SHA-256 over name, bytes and label of every file, sorted by name: whether two copies of a data set are the same.

    Contents are not read: a picture that was changed without changing its size goes unnoticed.
    """
    lines = sorted(zip(keys, sizes.tolist(), labels.tolist(), strict=True))
    digest = hashlib.sha256()
    for key, size, label in lines:
        digest.update(f"{key}\t{size}\t{label}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def fingerprint(positions: Positions, keys: Sequence[str], labels: Positions) -> str:
    """SHA-256 over id, key and label of every sample: two equal fingerprints mean the same samples."""
    digest = hashlib.sha256()
    for position in positions.tolist():
        digest.update(f"{position}\t{keys[position]}\t{labels[position]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
