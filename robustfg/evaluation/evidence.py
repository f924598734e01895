"""The evidence blocks of summary.json: errors by taxonomy, attention, latent space and calibration."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from robustfg.data.annotations import taxonomy_of
from robustfg.data.source import Source
from robustfg.evaluation.attention import attention_of
from robustfg.evaluation.calibration import calibration_of
from robustfg.evaluation.diagnosis import closeness_and_success
from robustfg.evaluation.scatter import WIDEST
from robustfg.evaluation.separation import Distances, separation_of
from robustfg.evaluation.taxonomy import errors_by_taxonomy


def evidence_of(
    table: pa.Table,
    attacks: Iterable[str],
    also: Iterable[str],
    source: Source,
    distances: Distances,
    embedding: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The blocks ``taxonomy``, ``attention``, ``separation``, ``embedding`` and ``calibration``.

    Those are None for which data or model lack what it takes.

    Args:
        table: all rows.
        attacks: names of the suite.
        also: further attacks that count in the worst case.
        source: the data set.
        distances: of the clean embeddings.
        embedding: what ``embedding_of`` found.

    Returns:
        The blocks, and ``not_measured`` with the reason for every one that is None.
    """
    attacks, taxonomy = list(attacks), taxonomy_of(source)
    nearest_level = next(iter(taxonomy.values()), None)
    blocks: dict[str, Any] = {
        "taxonomy": errors_by_taxonomy(table, taxonomy, attacks, also) or None,
        "attention": attention_of(table, attacks) or None,
        "separation": separation_of(distances, source.classes, nearest_level)
        | {"attacks": closeness_and_success(table, attacks, distances)},
        "embedding": embedding,
        "calibration": calibration_of(table, attacks, also),
    }
    reasons = {
        "taxonomy": "the data tells no groups of classes",
        "attention": "the model has no map of where its evidence lies",
        "embedding": f"the embedding has more than {WIDEST} dimensions",
    }
    return blocks | {"not_measured": {name: reason for name, reason in reasons.items() if blocks[name] is None}}
