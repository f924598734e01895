"""What a summary says of detectors, in words, rows and a figure."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from robustfg.core.text import drawable
from robustfg.reporting.figures import ACCENT, BAD, INK, SOFT, data_uri

Summary = Mapping[str, Any]

THREATS = {
    "semi_white_box": "semi-white box: detector ignored",
    "black_box": "black box: answers only",
    "white_box": "white box: knows both",
}
COLORS = {"semi_white_box": SOFT, "black_box": ACCENT, "white_box": BAD}
HEADINGS = ("detector", "attacker", "AUROC, successful", "AUROC, worst case", "joint robust accuracy", "joint correct")


def detection_rows(summary: Summary) -> list[tuple[str, ...]]:
    """A row of every detector and threat model; columns as in ``HEADINGS``."""
    return [
        (name, THREATS[threat], _value(found["ranking"]["successful"]["auroc"]),
         _value(found["ranking"]["worst_case"]["auroc"]), _accuracy(found["joint"]),
         f"{found['joint']['correct']} / {found['joint']['n']}")
        for name, told in _detectors(summary).items()
        for threat, found in told["threats"].items()
    ]  # fmt: skip


def rate_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Detector, threshold, asked and realised false-positive rate, the one to be expected, forced rejections."""
    return [
        (name, f"{told['tau']:.4g}", _percent(told["fpr"]["asked"]),
         f"{_percent(told['fpr']['realised'])} ({told['fpr']['rejected']} / {told['fpr']['n']})",
         _interval(told["fpr"]["expected95"]),
         _percent(told["forced_rejection"]["share"]) + ("" if told["forced_rejection"]["aimed"] else ", not aimed at"))
        for name, told in _detectors(summary).items()
    ]  # fmt: skip


def error_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Detector, attacker, the confidence-thresholded robust error as CCAT defines it and as MCAT's code does."""
    return [
        (name, THREATS[threat], *(
            f"{_percent(error['error'])} ({error['errors']} / {error['n']})"
            for error in (found["thresholded_error"][rule] for rule in ("ccat", "mcat_code"))
        ))
        for name, told in _detectors(summary).items()
        for threat, found in told["threats"].items()
    ]  # fmt: skip


def claims(summary: Summary) -> list[str]:
    """What is claimed of every detector, in a sentence; only the white box counts. Then what was left out."""
    told = [_claim(summary, name, told) for name, told in _detectors(summary).items()]
    left_out = summary["detection"]["threat"]["left_out"] if told else []
    return told + ([f"Not counted here, since they leave that ball: {', '.join(left_out)}."] if left_out else [])


def _claim(summary: Summary, name: str, told: Summary) -> str:
    if "white_box" not in told["threats"]:
        return f"{name}: nothing is claimed, since no white-box attack was run."
    joint, alone = told["threats"]["white_box"]["joint"], told["threats"]["white_box"]["curve"][0]
    threat, fpr = summary["detection"]["threat"], _percent(summary["detection"]["fpr"])
    at = f"within {threat['norm']} {threat['epsilon']}, rejecting {fpr} of clean images"
    with_it = f"{_accuracy(joint)} of all images are classified right and accepted under the white-box attack"
    return (
        f"{name}: {at}, at most {with_it}; without the detector at most {_percent(alone['accuracy'])} are right. "
        f"Verdict: {told['verdict']}."
    )


def joint_curves(summary: Summary) -> str | None:
    """Joint robust accuracy over the false-positive rate, an axis a detector; None without detectors."""
    detectors = _detectors(summary)
    if not detectors:
        return None
    columns = min(3, len(detectors))
    rows = -(-len(detectors) // columns)
    figure = Figure(figsize=(3.2 * columns + 1, 2.6 * rows + 0.4))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (name, told) in zip(grid, detectors.items(), strict=False):
        for threat, found in told["threats"].items():
            rate = [100 * point["fpr"] for point in found["curve"]]
            accuracy = [100 * point["accuracy"] for point in found["curve"]]
            axes.plot(rate, accuracy, color=COLORS[threat], marker="o", markersize=3, linewidth=1.4,
                      label=threat.replace("_", " "))  # fmt: skip
        bound = [100 * point["accepted"] / point["n"] for point in found["curve"]]
        axes.plot(rate, bound, color=INK, linestyle=":", linewidth=1.2, label="clean, right and accepted")
        axes.axvline(100 * summary["detection"]["fpr"], color=SOFT, linewidth=0.6)
        axes.set_title(drawable(name), fontsize=9)
        axes.set(ylim=(0, 101))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(detectors) :]:
        axes.set_visible(False)
    grid[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("false-positive rate in %", fontsize=9)
    figure.supylabel("joint robust accuracy in %", fontsize=9)
    figure.tight_layout()
    return data_uri(figure, "svg")


def _detectors(summary: Summary) -> Mapping[str, Any]:
    found: Mapping[str, Any] = summary.get("detection", {}).get("detectors", {})
    return found


def _value(part: Mapping[str, Any]) -> str:
    if part["value"] is None:
        return "–"
    interval = " [{:.2f}, {:.2f}]".format(*part["ci95"]) if part["ci95"] else ""
    return f"{part['value']:.3f}{interval}"


def _accuracy(part: Mapping[str, Any]) -> str:
    low, high = part["ci95"]
    return f"{100 * part['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _interval(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
