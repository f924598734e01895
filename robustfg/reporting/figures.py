"""Figures of the page, as data URIs."""

import base64
import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustfg.core.text import drawable

INK, ACCENT, SOFT, BAD = "#1d2433", "#1f5fa8", "#8b95a7", "#a8321f"


def data_uri(figure: Figure, kind: str) -> str:
    """The figure as ``svg`` or ``png`` in a data URI."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font lacks
        figure.savefig(buffer, format=kind, dpi=120, bbox_inches="tight", transparent=True)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def accuracy_bars(summary: Mapping[str, Any]) -> str:
    """Accuracy of clean, every attack and the worst case, with intervals."""
    parts = {"clean": summary["clean"], **summary["attacks"], "worst case": summary["worst_case"]}
    figure = Figure(figsize=(8, 0.6 + 0.38 * len(parts)))
    axes = figure.subplots()
    accuracy = np.array([part["accuracy"] for part in parts.values()]) * 100
    low, high = (np.array([part["ci95"][end] for part in parts.values()]) * 100 for end in (0, 1))
    reach = np.clip([accuracy - low, high - accuracy], 0, None)
    colors = [ACCENT, *[SOFT] * (len(parts) - 2), BAD]
    axes.barh(
        list(map(drawable, parts)),
        accuracy,
        color=colors,
        xerr=reach,
        error_kw={"ecolor": INK, "capsize": 3},
        height=0.6,
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="accuracy in %")
    axes.spines[["top", "right"]].set_visible(False)
    return data_uri(figure, "svg")


def training_curves(metrics: Path) -> str | None:
    """Loss and accuracies over the epochs from metrics.csv; None where there are none."""
    if not metrics.is_file():
        return None
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("epoch")]
    left = _series(rows, ("train/loss", "val/loss"))
    right = _series(rows, ("train/accuracy", "train/adversarial_accuracy", "val/accuracy", "val/robust_accuracy"))
    if not left and not right:
        return None
    figure = Figure(figsize=(8, 2.8))
    for axes, series, label in zip(figure.subplots(1, 2), (left, right), ("loss", "accuracy in %"), strict=True):
        for name, (epochs, values) in series.items():
            scale = 100 if "accuracy" in name else 1
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, np.array(values) * scale, label=name, marker=marker, linewidth=1.4)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if series:
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return data_uri(figure, "svg")


def _series(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Mean of every metric per epoch."""
    series = {}
    for name in names:
        by_epoch: dict[float, list[float]] = {}
        for row in rows:
            if row.get(name):
                by_epoch.setdefault(float(row["epoch"]) + 1, []).append(float(row[name]))
        if by_epoch:
            series[name] = (list(by_epoch), [float(np.mean(values)) for values in by_epoch.values()])
    return series
