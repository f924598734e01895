"""What the images of the splits hold, so that an image that is in two of them is found under any name."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

import numpy as np

from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.data.files import FileSplit
from robustfg.evaluation.gather import gathered

Digests = Mapping[str, Mapping[int, bytes]]
"""Of images, by split and id."""


class Contents:
    """Digests of images as the classifier sees them, taken while they pass by; none of them is augmented."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, bytes]] = {}

    def passing(self, split: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, of which note is taken."""
        for batch in batches:
            self.note(split, batch)
            yield batch

    def note(self, split: str, batch: Batch) -> None:
        """Takes note of a batch of a split."""
        pixels = (batch.image * 255).round().byte().cpu().numpy()
        digests = (blake2b(image.tobytes(), digest_size=16).digest() for image in pixels)
        self._seen.setdefault(split, {}).update(zip(batch.index.tolist(), digests, strict=True))

    def seen(self) -> Digests:
        """Digests by split and id, from all processes; every one must call it."""
        everything: dict[str, dict[int, bytes]] = {}
        for part in gathered(self._seen):
            for split, digests in part.items():
                everything.setdefault(split, {}).update(digests)
        return everything


def splits_of_files(data: DataModule) -> dict[str, FileSplit] | None:
    """The splits by name; None where not all images are files."""
    sources = {"train": data.source.train, "val": data.source.val or data.source.train, "test": data.source.test}
    splits = {name: split for name, split in sources.items() if isinstance(split, FileSplit)}
    return splits if len(splits) == len(sources) else None


def files_of(data: DataModule) -> Digests:
    """Digests of the bytes of all images' files, without decoding any.

    Files that differ in size are told apart by it; only the others are read.
    """
    splits = splits_of_files(data)
    assert splits is not None
    sizes = {name: split.sizes[data.positions[name]] for name, split in splits.items()}
    values, counts = np.unique(np.concatenate(list(sizes.values())), return_counts=True)
    shared = set(values[counts > 1].tolist())
    found: dict[str, dict[int, bytes]] = {}
    for name, split in splits.items():
        for position, size in zip(data.positions[name].tolist(), sizes[name].tolist(), strict=True):
            content = (split.root / split.keys[position]).read_bytes() if size in shared else b""
            digest = blake2b(content, digest_size=16, salt=int(size).to_bytes(16, "little")).digest()
            found.setdefault(name, {})[position] = digest
    return found
