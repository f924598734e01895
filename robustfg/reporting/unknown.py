"""What a summary says of unknown images, in rows."""

from collections.abc import Mapping
from typing import Any

HEADINGS = ("unknown images", "detector", "input", "AUROC", "FPR at 95 % TPR", "OSCR", "accepted")

NOTE = (
    "FPR at 95 % TPR: the share of unknown images accepted where 95 % of the known ones are. OSCR: AUROC with wrong "
    "classes counted as lost. Attacked: unknown images pushed to be accepted; known ones are clean."
)


def unknown_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of every set, detector and kind of input; columns as in ``HEADINGS``, shares at the headline threshold."""
    return [
        (f"{name} ({block['n']})", detector, state, f"{told['auroc']:.3f}",
         _percent(told["unknown_accepted_at_95_known_accepted"]), f"{told['oscr']:.3f}",
         _accepted(told["accepted"], summary["detection"]["fpr"]))
        for name, block in summary["unknown"].items()
        for detector, states in block["detectors"].items()
        for state, told in states.items()
    ]  # fmt: skip


def title(summary: Mapping[str, Any]) -> str:
    """What the rows are about."""
    fpr, threat = summary["detection"]["fpr"], summary["detection"]["threat"]
    attacked = f"attacked in {threat['norm']} {threat['epsilon']}"
    return f"Unknown images, clean and {attacked}; accepted: at a false-positive rate of {100 * fpr:g} %"


def _accepted(levels: list[Mapping[str, Any]], fpr: float) -> str:
    at = next(level for level in levels if level["alpha"] == fpr)["unknown_accepted"]
    low, high = at["ci95"]
    return f"{_percent(at['share'])} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
