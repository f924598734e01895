"""The feature space and the calibration of a summary, in words and rows."""

from collections.abc import Mapping
from typing import Any

Row = tuple[str, ...]
Summary = Mapping[str, Any]


def embedding_lines(summary: Summary) -> list[str]:
    """Lines on the feature space, for the terminal; none where it was not measured."""
    found = summary.get("embedding")
    return [line for line in (normality(found), symmetry(found), claimed(found)) if line] if found else []


def calibration_lines(summary: Summary) -> list[str]:
    """A line on the calibration, for the terminal; none where it was not measured."""
    if not (found := summary.get("calibration")):
        return []
    clean, worst = found["clean"], found["worst_case"]
    return [
        f"Calibration error {100 * clean['ece']:.1f} % clean, {100 * worst['ece']:.1f} % worst case; mean "
        f"confidence {100 * clean['confidence']:.1f} and {100 * worst['confidence']:.1f} %."
    ]


def normality(embedding: Mapping[str, Any]) -> str:
    """Whether classes are Gaussian, in sentences."""
    found = embedding["gaussian"]
    if found is None:
        return "No class can be tested for being Gaussian: none has 20 samples that differ."
    left_out = [f"{found[name]} with {text}" for name, text in _LEFT_OUT.items() if found[name]]
    skewness, kurtosis = (
        f"{name} {found[name]['rejected']} of {found[name]['tested']} classes" for name in ("skewness", "kurtosis")
    )
    return (
        f"Mardia's tests at 5 % reject as Gaussian: by {skewness}, by {kurtosis} ({found['skewness']['expected']:.1f} "
        f"by chance), along {reduction(found)}."
        + (f" Not tested: {', '.join(left_out)}." if left_out else "")
        + f" Distances to the class's mean {law(found['distances'])}."
    )


_LEFT_OUT = {"too_few": "fewer than 20 samples", "flat": "no spread along some direction"}


def reduction(gaussian: Mapping[str, Any]) -> str:
    """Which directions were looked at."""
    if gaussian["directions"] == gaussian["dimensions"]:
        return f"all {gaussian['dimensions']} dimensions"
    return (
        f"the {gaussian['directions']} widest of {gaussian['dimensions']} directions within classes, which hold "
        f"{100 * gaussian['held']:.0f} % of the scatter"
    )


def law(distances: Mapping[str, Any]) -> str:
    """How far distances are from their law."""
    return (
        f"differ from chi-square by {distances['ks']:.3f} (Kolmogorov-Smirnov; where the law holds, it exceeds "
        f"{distances['ks_chance']:.3f} once in 20)"
    )


def symmetry(embedding: Mapping[str, Any]) -> str:
    """How evenly the means are spread, in a sentence; empty where it cannot be told."""
    if (found := embedding["symmetry"]) is None:
        return ""
    told = (
        f"Distances between class means vary by {100 * found['variation']:.1f} %, smallest to largest "
        f"{found['smallest_to_largest']:.2f} (0 % and 1 if symmetric)."
    )
    if found["noise"] is None:
        return f"{told} How much of them is chance cannot be told: no two classes have two samples."
    return (
        f"{told} Were the true means all one, sampling alone would give {100 * found['noise']:.1f} % of the squared "
        "distances found."
    )


def claimed(embedding: Mapping[str, Any]) -> str:
    """Whether features follow the Gaussians that the model claims, in a sentence; empty where it claims none."""
    if (found := embedding["claimed"]) is None:
        return ""
    return (
        f"Squared distances to the class's own Gaussian, as the model claims it in {found['dimensions']} dimensions, "
        f"{law(found)}; they are {found['mean_ratio']:.3g} times as large as claimed"
        f"{_meaning(found['mean_ratio'])}."
    )


def _meaning(ratio: float) -> str:
    """What it says of the features that their squared distances are ``ratio`` times as large as claimed."""
    if 0.5 <= ratio <= 2:
        return ""
    much = "" if 0.1 <= ratio <= 10 else "much "
    where = "nearer to" if ratio < 1 else "farther from"
    return f": features lie {much}{where} their means than the covariance of the loss claims"


def calibration_rows(summary: Summary) -> list[Row]:
    """Input, accuracy, mean confidence, expected calibration error, negative log-likelihood, Brier score."""
    calibration = summary.get("calibration")
    if not calibration:
        return []
    inputs = {"clean": calibration["clean"], **calibration["attacks"], "worst case": calibration["worst_case"]}
    return [
        (name, *(f"{100 * found[key]:.1f} %" for key in ("accuracy", "confidence", "ece")),
         *(f"{found[key]:.3g}" for key in ("nll", "brier")))
        for name, found in inputs.items()
    ]  # fmt: skip
