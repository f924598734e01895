"""What the images of the splits hold, so that an image that is in two of them is found under any name."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from robustfg.evaluation.gather import gathered
from robustfg.types import Batch


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

    def seen(self) -> dict[str, dict[int, bytes]]:
        """Digests by split and id, from all processes; every one must call it."""
        everything: dict[str, dict[int, bytes]] = {}
        for part in gathered(self._seen):
            for split, digests in part.items():
                everything.setdefault(split, {}).update(digests)
        return everything
