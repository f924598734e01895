"""What ``summary.json`` tells of the rows: numbers, evidence, checks and verdict."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from robustfg import __version__
from robustfg.attacks import Attack
from robustfg.data.source import Source
from robustfg.evaluation.aggregation import summarise
from robustfg.evaluation.checks import Facts, Probe, judge, verdict
from robustfg.evaluation.checks.probes import GRADIENT_FREE, ONE_STEP, REFERENCE
from robustfg.evaluation.detection.unwatched import Unwatched
from robustfg.evaluation.evidence import evidence_of
from robustfg.evaluation.remarks import remarks_of
from robustfg.evaluation.separation import Distances

UNCHECKED = "upper bound, unverified"
"""The verdict where no check was run."""


def numbers_of(
    table: pa.Table,
    suite: Mapping[str, Attack],
    *,
    probe: Probe,
    watch: Unwatched,
    facts: Facts,
    source: Source,
    distances: Distances,
    embedding: Mapping[str, Any] | None,
    checked: bool,
) -> dict[str, Any]:
    """All of the summary that comes from what was measured. Every process must call it.

    Args:
        table: all rows.
        suite: attacks on the classifier, by name.
        probe: the attacks among the checks; those that are attacks on the classifier count in the worst case.
        watch: the detectors' part.
        facts: what the rows do not tell.
        source: the data set.
        distances: of the clean embeddings.
        embedding: what ``embedding_of`` found.
        checked: whether checks are wanted.
    """
    apart = watch.apart(table)
    checks = judge(apart, {**suite, **probe.attacks}, facts) if checked else []
    about_classifier = verdict(checks) if checks else UNCHECKED
    attacking = (ONE_STEP, REFERENCE, GRADIENT_FREE)
    also = {name: attack for name, attack in probe.attacks.items() if name.startswith(attacking)}
    library = f"robustfg {__version__}"
    described = {name: {"library": library, **attack.shown()} for name, attack in suite.items()}
    counts = summarise(table, described, also=[*also, *watch.attacks, *watch.references])
    blocks, further = watch.told(table, counts["attacks"], also, about_classifier, checked=checked)
    return {
        **counts,
        **evidence_of(apart, suite, also, source, distances, embedding),
        **blocks,
        "checks": [check.as_dict() for check in (*checks, *further)],
        "verdict": about_classifier,
        "remarks": remarks_of(table, counts, len(source.classes), checks, facts),
    }
