"""What an evaluation without detectors does where one with detectors does more."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from robustfg.attacks import Attack
from robustfg.attacks.runtime.eval_mode import attackable
from robustfg.attacks.runtime.validation import steady
from robustfg.core.types import Batch
from robustfg.evaluation.checks import Check
from robustfg.evaluation.checks.probes import DETERMINISM, FINITE_DIFFERENCE, finite_difference
from robustfg.evaluation.detection.unknown_images import UNKNOWN_ROWS
from robustfg.evaluation.measure import Classify, measure_clean

Rows = list[dict[str, Any]]


class Unwatched:
    """An evaluation without detectors.

    Args:
        classifier: what is evaluated.

    Attributes:
        judged: what tells the predictions that are recorded.
        attacks: joint attacks by name.
        references: further ones by name, for the samples on which checks run.
        probes: names of the checks that are recorded like attacks and are none.
        identity: what rows depend on besides weights, samples and attacks.
    """

    def __init__(self, classifier: Classify) -> None:
        self.classifier = self.judged = classifier
        self.attacks: dict[str, Attack] = {}
        self.references: dict[str, Attack] = {}
        self.probes = [FINITE_DIFFERENCE, DETERMINISM]
        self.identity: list[object] = []

    def detector(self, attack: str) -> str | None:
        """Whose least score a joint attack tells; None for others."""
        return None

    def see(self, batch: Batch) -> None:
        """Takes note of test samples; every one passes by, in an evaluation that is continued as well."""

    def measure(self, folder: Path, about: Sequence[object]) -> None:
        """Measures what is no test sample; every process must call it.

        Args:
            folder: of the record of evidence.
            about: what its rows depend on, in plain containers.
        """

    def probe(self, batch: Batch) -> Rows:
        """Rows of the probes."""
        told = finite_difference(self.classifier, batch)
        with attackable(self.classifier):
            agree = steady(self.classifier, batch.image)
        return self._probed(batch, [FINITE_DIFFERENCE, DETERMINISM], [told, agree])

    def _probed(self, batch: Batch, names: Sequence[str], behaved: Sequence[Tensor]) -> Rows:
        """A row of every sample and probe, ``correct`` where it behaved, ``(B,)`` each."""
        plain = measure_clean(self.judged, batch)[0]
        told = [(name, zip(plain, found.tolist(), strict=True)) for name, found in zip(names, behaved, strict=True)]
        return [row | {"attack": name, "correct": good} for name, pairs in told for row, good in pairs]

    def apart(self, table: pa.Table) -> pa.Table:
        """The rows and columns of the evaluation without detectors."""
        return table

    def told(
        self, table: pa.Table, suite: Mapping[str, Any], also: Mapping[str, Attack], verdict: str, *, checked: bool
    ) -> tuple[dict[str, Any], list[Check]]:
        """What goes into ``summary.json``: blocks, and checks. Every process must call it.

        Args:
            table: all rows.
            suite: entries of the suite's attacks, as they stand there.
            also: further attacks on the classifier alone that count in its worst case, by name.
            verdict: on the evaluation without detectors.
            checked: whether checks are wanted.
        """
        return {}, []

    def write(self, folder: Path) -> None:
        """Writes what has been learned, in place of what an earlier evaluation left here."""
        (folder / UNKNOWN_ROWS).unlink(missing_ok=True)
