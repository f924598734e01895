"""What is known of classifiers without a detector at half the radius.

A detector that is robust at epsilon gives a classifier, however slow, that is robust at epsilon / 2 (Tramèr 2022): a
claim far above what classifiers reach there is more likely a weak attack than a discovery.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustfg.attacks import Threat
from robustfg.attacks.threats.base import pixel_value
from robustfg.core.errors import UserError


def best_known(threat: Threat, own: Mapping[str, Any], runs: Sequence[str], data: str | None) -> float | None:
    """The highest accuracy of any classifier under its own strongest attack of half the radius; None where none is.

    Args:
        threat: of the claim.
        own: the entry of every attack of this evaluation, as it stands in ``summary.json``.
        runs: folders of other runs.
        data: name of the data, which theirs must be.

    Raises:
        UserError: for folders without an evaluation, on other data, or without such an attack.
    """
    found = [accuracy] if (accuracy := _weakest(threat, own)) is not None else []
    for run in runs:
        option, summary = f"evaluation.detection.half_epsilon={run}", summary_at(run)
        if summary["data"] != data:
            raise UserError(f"{option}: it was evaluated on {summary['data']}, this run is on {data}")
        accuracy = _weakest(threat, summary["attacks"])
        if accuracy is None:
            raise UserError(
                f"{option}: none of its attacks is {threat.norm} of {threat.radius / 2:.6g}, half the radius"
            )
        found.append(accuracy)
    return max(found, default=None)


def summary_at(run: str) -> dict[str, Any]:
    """The numbers of an evaluation by its folder. Raises ``UserError`` where there is none."""
    path = Path(run).expanduser() / "robustness/summary.json"
    if not path.is_file():
        raise UserError(f"evaluation.detection.half_epsilon={run}: there is no evaluation at {path}")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def _weakest(threat: Threat, attacks: Mapping[str, Any]) -> float | None:
    """Smallest accuracy under the attacks with half the radius."""
    accuracies = [
        float(part["accuracy"])
        for part in attacks.values()
        if part.get("norm") == threat.norm
        and abs(pixel_value(part["epsilon"], "epsilon") - threat.radius / 2) < 1e-6 * threat.radius
    ]
    return min(accuracies, default=None)
