"""Figures of the feature space and of the calibration, as data URIs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfg.core.text import drawable
from robustfg.reporting.figures import ACCENT, BAD, INK, SOFT, data_uri
from robustfg.reporting.marks import Mark, marks

NAMED = 20
"""Most classes, or else groups, that are named in the picture."""
AXES = {"embedding": "dimension {} of the embedding", "discriminant": "discriminant direction {}"}


def latent_picture(archive: Path, classes: Sequence[str], groups: Sequence[str] | None = None) -> str | None:
    """Samples and class means in ``embedding.npz``; None without one.

    Args:
        archive: the file.
        classes: their names.
        groups: the genus of every class, where one is known: shown by colour, the class within it by shape.
    """
    if not archive.is_file():
        return None
    content = np.load(archive)
    points, label, means = content["points"], content["label"], content["means"]
    looks = marks(len(classes), groups)
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for k in np.unique(label):
        own, (x, y), (color, shape) = points[label == k], means[k], looks[k]
        axes.scatter(own[:, 0], own[:, 1], s=26, marker=shape, color=color, alpha=0.55, linewidths=0)
        axes.scatter(x, y, s=110, marker=shape, color=color, edgecolors=INK, linewidths=1.3, zorder=3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    title = AXES[str(content["axes"])]
    axes.set(xlabel=title.format(1), ylabel=title.format(2))
    if len(classes) <= NAMED:
        _legend(axes, dict(zip(classes, looks, strict=True)))
    elif groups is not None and len(set(groups)) <= NAMED:
        _legend(axes, {name: Mark(look.color, "o") for name, look in zip(groups, looks, strict=True)})
    return data_uri(figure, "png")


def _legend(axes: Axes, looks: Mapping[str, Mark]) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=look.shape, color=look.color, markersize=7, label=drawable(name))
        for name, look in looks.items()
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def shown_axes(archive: Path) -> str | None:
    """What the axes of ``embedding.npz`` are; None without one."""
    return str(np.load(archive)["axes"]) if archive.is_file() else None


def laws_picture(summary: Mapping[str, Any]) -> str | None:
    """Quantiles of squared distances against their law; None where no law was compared."""
    embedding = summary.get("embedding") or {}
    laws = [
        (name, found["qq"], color)
        for name, found, color in (
            ("own mean and covariance", (embedding.get("gaussian") or {}).get("distances"), ACCENT),
            ("as claimed by the model", embedding.get("claimed"), BAD),
        )
        if found
    ]
    if not laws:
        return None
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    for name, qq, color in laws:  # over the law's largest shown quantile, so that both fit whatever their dimensions
        top = qq["expected"][-1]
        axes.plot(np.array(qq["expected"]) / top, np.array(qq["found"]) / top, "o", ms=4, color=color, label=name)
    axes.set(xlabel="quantile expected of chi-square (largest = 1)", ylabel="quantile found")
    return _against_diagonal(figure, axes, "as the law says")


def reliability_picture(summary: Mapping[str, Any]) -> str | None:
    """Accuracy against confidence; None where the calibration was not measured."""
    calibration = summary.get("calibration")
    if not calibration:
        return None
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    for name, key, color in (("clean", "clean", ACCENT), ("worst case", "worst_case", BAD)):
        _, confidence, accuracy = np.array(calibration[key]["reliability"]).T
        axes.plot(confidence, accuracy, "o-", ms=4, linewidth=1, color=color, label=name)
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="mean confidence of a bin", ylabel="accuracy in it")
    return _against_diagonal(figure, axes, "perfectly calibrated")


def _against_diagonal(figure: Figure, axes: Axes, name: str) -> str:
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--", label=name)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return data_uri(figure, "svg")
