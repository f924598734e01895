"""report.html: one self-contained page about a run, from the files in its folder."""

import csv
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from robustfg.core.errors import UserError
from robustfg.core.files import write_text
from robustfg.core.text import shown
from robustfg.reporting import checks, detection, embedding, evidence, unknown
from robustfg.reporting.broken import gallery, shown_map
from robustfg.reporting.embedding_figures import latent_picture, laws_picture, reliability_picture, shown_axes
from robustfg.reporting.figures import accuracy_bars, training_curves
from robustfg.reporting.table import rows_of


def write_page(folder: Path) -> Path:
    """Writes ``robustness/report.html`` of a run's folder and returns its path. Needs no network to be read."""
    robustness = folder / "robustness"
    with _readable(robustness / "summary.json") as path:
        summary = shown(json.loads(path.read_text()))
    with _readable(folder / "metrics.csv") as path:
        curves = training_curves(path)
    environment = Environment(
        loader=PackageLoader("robustfg.reporting", "."), autoescape=select_autoescape(default=True)
    )
    html = environment.get_template("page.html.jinja").render(
        title=title_of(summary),
        summary=summary,
        rows=rows_of(summary),
        interval=_interval,
        checks=checks,
        bars=accuracy_bars(summary),
        curves=curves,
        gallery=gallery(robustness / "gallery.npz", summary["classes"]),
        shown_map=shown_map(robustness / "gallery.npz"),
        evidence=evidence,
        embedding=embedding,
        latent_picture=latent_picture(robustness / "embedding.npz", summary["classes"], summary.get("genera")),
        shown_axes=shown_axes(robustness / "embedding.npz"),
        laws=laws_picture(summary),
        reliability=reliability_picture(summary),
        detection=detection,
        unknown=unknown,
        joint_curves=detection.joint_curves(summary),
        origin=_origin(folder),
    )
    page = robustness / "report.html"
    write_text(page, html)
    return page


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """A damaged file in one line that names it; the evaluation is written by then."""
    try:
        yield path
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): mend or remove it, and evaluate again") from error


def title_of(summary: Mapping[str, Any]) -> str:
    """Data and loss, which weights were evaluated, and under which attacks."""
    weights = summary.get("checkpoint") or f"run {summary['run']}"
    suite = summary.get("suite") or ", ".join(summary["attacks"])
    return f"{summary['data']}, {summary['loss']}: robustness of {weights} under attack={suite}"


def _interval(part: Mapping[str, Any]) -> str:
    low, high = part["ci95"]
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _origin(folder: Path) -> list[tuple[str, str]]:
    """Rows of provenance.json worth showing."""
    path = folder / "provenance.json"
    if not path.is_file():
        return []
    with _readable(path):
        return _rows(shown(json.loads(path.read_text())))


def _rows(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("command", shlex.join(origin["command"])),
        ("time", origin["time"]),
        ("robustfg", f"{origin['robustfg']}, commit {origin['commit'] or 'unknown'}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in origin["packages"].items())),
        ("machine", f"{origin['machine']['platform']}, GPUs: {', '.join(origin['machine']['gpus']) or 'none'}"),
        *(
            (f"{name} split", f"{split['n']} samples, ids {split['ids_sha256'][:12]}…{_files(split)}")
            for name, split in origin["splits"].items()
        ),
    ]


def _files(split: Mapping[str, Any]) -> str:
    return f", files {split['manifest_sha256'][:12]}…" if "manifest_sha256" in split else ""
