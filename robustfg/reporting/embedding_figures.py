"""Figures of the feature space and of the calibration, as data URIs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfg.reporting.figures import ACCENT, BAD, INK, SOFT, data_uri

NAMED = 20
"""Most classes that are named in the picture."""

Curves = list[tuple[str, Mapping[str, Any], str]]
"""Names, what they are drawn from, and colours."""


def latent_picture(archive: Path, classes: Sequence[str]) -> str | None:
    """Samples and class means in ``embedding.npz``; None without one."""
    if not archive.is_file():
        return None
    content = np.load(archive)
    points, label, means = content["points"], content["label"], content["means"]
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= NAMED else "turbo"]
    shades = [palette(k if len(classes) <= NAMED else k / (len(classes) - 1)) for k in range(len(classes))]
    for k in np.unique(label):
        own, name = points[label == k], classes[k] if len(classes) <= NAMED else None
        axes.scatter(own[:, 0], own[:, 1], s=8, color=shades[k], alpha=0.6, linewidths=0, label=name)
    axes.scatter(means[:, 0], means[:, 1], s=45, c=shades, edgecolors=INK, linewidths=0.9, zorder=3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    if len(classes) <= NAMED:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return data_uri(figure, "png")


def shown_axes(archive: Path) -> str | None:
    """What the axes of ``embedding.npz`` are; None without one."""
    return str(np.load(archive)["axes"]) if archive.is_file() else None


def laws_and_reliability(summary: Mapping[str, Any]) -> str | None:
    """Quantiles of squared distances against their law, and accuracy against confidence; None without either."""
    embedding, calibration = summary.get("embedding") or {}, summary.get("calibration")
    laws = [
        (name, found["qq"], color)
        for name, found, color in (
            ("own mean and covariance", (embedding.get("gaussian") or {}).get("distances"), ACCENT),
            ("as claimed by the model", embedding.get("claimed"), BAD),
        )
        if found
    ]
    if not laws and not calibration:
        return None
    panels: list[tuple[Callable[[Axes, Curves], None], Curves]] = [(_laws, laws)] if laws else []
    panels += [(_reliability, _inputs(calibration))] if calibration else []
    figure = Figure(figsize=(4 * len(panels), 3.2))
    for axes, (draw, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, curves)
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return data_uri(figure, "svg")


def _laws(axes: Axes, laws: Curves) -> None:
    for name, qq, color in laws:  # over the law's largest shown quantile, so that both fit whatever their dimensions
        top = qq["expected"][-1]
        axes.plot(np.array(qq["expected"]) / top, np.array(qq["found"]) / top, "o", ms=3, color=color, label=name)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1)
    axes.set(xlabel="expected of chi-square (top = 1)", ylabel="squared distance")


def _reliability(axes: Axes, inputs: Curves) -> None:
    for name, part, color in inputs:
        _, confidence, accuracy = np.array(part["reliability"]).T
        axes.plot(confidence, accuracy, "o-", ms=3, linewidth=1, color=color, label=name)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1)
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")


def _inputs(calibration: Mapping[str, Any]) -> Curves:
    return [("clean", calibration["clean"], ACCENT), ("worst case", calibration["worst_case"], BAD)]
