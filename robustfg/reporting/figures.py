"""Figures of the page, as data URIs."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK, ACCENT, SOFT, BAD = "#1d2433", "#1f5fa8", "#8b95a7", "#a8321f"


def data_uri(figure: Figure, kind: str) -> str:
    """The figure as ``svg`` or ``png`` in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120, bbox_inches="tight")
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
    axes.barh(list(parts), accuracy, color=colors, xerr=reach, error_kw={"ecolor": INK, "capsize": 3}, height=0.6)
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


def gallery(archive: Path, classes: Sequence[str]) -> str | None:
    """Clean, amplified perturbation and adversarial image of every sample in ``gallery.npz``; None without one.

    Where the archive holds maps, the clean and the adversarial image are followed by themselves under their map.
    """
    if not archive.is_file():
        return None
    content = np.load(archive)
    count, mapped = len(content["index"]), "map" in content
    figure = Figure(figsize=(max(4.0, 1.25 * count), 7.2 if mapped else 4.4))
    grid = figure.subplots(5 if mapped else 3, count, squeeze=False)
    for item in range(count):
        clean, delta = content["clean"][item], content["delta"][item]
        amplified, adversarial = (
            0.5 + 0.5 * delta / max(float(np.abs(delta).max()), 1e-12),
            np.clip(clean + delta, 0, 1),
        )
        pictures = [clean, clean, amplified, adversarial, adversarial] if mapped else [clean, amplified, adversarial]
        for axes, picture in zip(grid[:, item], pictures, strict=True):
            axes.imshow(_picture(picture), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for row, name in ((1, "clean_map"), (4, "attacked_map")) if mapped else ():
            _overlay(grid[row, item], content[name][item], clean.shape[1:])
        grid[0, item].set_title(_short(classes[content["label"][item]]), fontsize=7, color=INK)
        grid[-1, item].set_xlabel(_short(classes[content["prediction"][item]]), fontsize=7, color=BAD)
        grid[2 if mapped else 1, item].set_xlabel(str(content["attack"][item]), fontsize=7, color=SOFT)
    figure.tight_layout(pad=0.4)
    return data_uri(figure, "png")


def shown_map(archive: Path) -> str | None:
    """Name of the map in ``gallery.npz``; None without one."""
    content = np.load(archive) if archive.is_file() else {}
    return str(content["map"]) if "map" in content else None


def _overlay(axes: Any, cells: NDArray[np.float32], size: tuple[int, int]) -> None:
    """Lays a map ``(h, w)`` over the image of the given height and width; a dead one is left out."""
    height, width = size
    if np.isfinite(cells).all() and cells.max() > 0:
        axes.imshow(
            cells, cmap="inferno", alpha=0.6, vmin=0, interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip


def _picture(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(image.transpose(1, 2, 0), 0, 1)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
