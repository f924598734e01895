"""The picture of broken samples, as a data URI."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustfg.core.text import drawable
from robustfg.reporting.figures import BAD, INK, data_uri

ROWS = ("clean", "perturbation", "attacked")
MAPPED_ROWS = ("clean", "map, clean", "perturbation", "attacked", "map, attacked")


def gallery(archive: Path, classes: Sequence[str]) -> str | None:
    """Clean, amplified perturbation and adversarial image of every sample in ``gallery.npz``; None without one.

    Where the archive holds maps, the clean and the adversarial image are followed by themselves under their map.
    """
    if not archive.is_file():
        return None
    content = np.load(archive)
    count, mapped = len(content["index"]), "map" in content
    rows = MAPPED_ROWS if mapped else ROWS
    figure = Figure(figsize=(0.5 + max(3.5, 1.3 * count), 1.35 * len(rows) + 1.2), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for item in range(count):
        clean, delta = content["clean"][item], content["delta"][item]
        amplified = 0.5 + 0.5 * delta / max(float(np.abs(delta).max()), 1e-12)
        attacked = np.clip(clean + delta, 0, 1)
        pictures = [clean, clean, amplified, attacked, attacked] if mapped else [clean, amplified, attacked]
        for axes, picture in zip(grid[:, item], pictures, strict=True):
            axes.imshow(np.clip(picture.transpose(1, 2, 0), 0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for row, name in ((1, "clean_map"), (4, "attacked_map")) if mapped else ():
            lay_map(grid[row, item], content[name][item], clean.shape[1:])
        grid[0, item].set_title(_lines(classes[content["label"][item]]), fontsize=12, color=INK)
        grid[-1, item].set_xlabel(_lines(classes[content["prediction"][item]]), fontsize=12, color=BAD)
        grid[rows.index("perturbation"), item].set_xlabel(
            drawable(str(content["attack"][item])), fontsize=12, color=INK
        )
    for axes, label in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(label, fontsize=12, color=INK)
    return data_uri(figure, "png")


def shown_map(archive: Path) -> str | None:
    """Name of the map in ``gallery.npz``; None without one."""
    content = np.load(archive) if archive.is_file() else {}
    return str(content["map"]) if "map" in content else None


def lay_map(axes: Any, cells: NDArray[np.float32], size: tuple[int, int]) -> None:
    """Lays a map ``(h, w)`` over the image of the given height and width; says so in its place where it is dead."""
    height, width = size
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if np.isfinite(cells).all() and cells.max() > 0:
        axes.imshow(cells, cmap="inferno", alpha=0.6, vmin=0, interpolation="bilinear", extent=extent)
    else:
        axes.imshow(np.full((1, 1, 3), 0.93), extent=extent)
        axes.text(0.5, 0.5, "map is\ndead", transform=axes.transAxes, ha="center", va="center", fontsize=12, color=INK)


def _lines(name: str) -> str:
    """A class's name in at most two lines that fit over a picture."""
    return drawable("\n".join(textwrap.wrap(name.replace("_", " "), 12, max_lines=2, placeholder="…")))
