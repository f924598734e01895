"""What came of all files, in numbers."""

from collections import Counter

from robustfg.prediction.predictor import Row


class Tally:
    """Counts rows while they pass."""

    def __init__(self) -> None:
        self.images, self.failed = 0, 0
        self.judged: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def count(self, row: Row) -> None:
        """Takes note of a row."""
        self.images += 1
        self.failed += row.error is not None
        self.judged.update(row.accepted.keys())
        self.rejected.update(name for name, accepted in row.accepted.items() if not accepted)

    @property
    def status(self) -> int:
        """The exit status: 0 where every image was classified, 2 where some failed, 1 where there was nothing else."""
        if self.failed == self.images:
            return 1
        return 2 if self.failed else 0

    def summary(self) -> str:
        """One line on how many images were classified, failed and were rejected."""
        rejected = [f"; {name} rejects {self.rejected[name]:,}" for name in self.judged]
        classified = self.images - self.failed
        images = "1 image" if classified == 1 else f"{classified:,} images"
        return f"{images} classified, {self.failed:,} failed{''.join(rejected)}"
