"""The evaluation's result as a table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robustfg.core.text import printable, shown
from robustfg.reporting import detection, unknown
from robustfg.reporting.checks import checks_line, tolerance
from robustfg.reporting.evidence import evidence_lines


def rows_of(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, settings, accuracy with interval and counts of everything evaluated, clean first, worst case last."""
    entries = [("clean", "", summary["clean"])]
    for name, part in summary["attacks"].items():
        entries += [
            (f"· {stage}", f"left after {settings(so_far)}", so_far) for stage, so_far in stages_of(part).items()
        ]
        entries.append((name, settings(part), part))
    entries.append(("worst case", "per sample, over all that was run", summary["worst_case"]))
    return [(name, text, percent(part), f"{part['correct']} / {part['n']}") for name, text, part in entries]


def stages_of(attack: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stages of a cascade; none for other attacks."""
    stages: Mapping[str, Any] = attack.get("stages", {})
    return stages


def settings(attack: Mapping[str, Any]) -> str:
    """One line on an attack: norm, radius, steps, objective."""
    if stages_of(attack):
        return f"{attack['norm']} {attack['epsilon']}, union of its {len(attack['stages'])} stages"
    restarts = f", {attack['restarts']} restarts" if attack["restarts"] > 1 else ""
    steps = f"{attack['steps']} step{'s' if attack['steps'] > 1 else ''}"
    return f"{attack['norm']} {attack['epsilon']}, {steps}{restarts}, {str(attack['objective']).replace('_', ' ')}"


def percent(part: Mapping[str, Any]) -> str:
    """Accuracy and 95 % interval in percent."""
    low, high = part["ci95"]
    return f"{100 * part['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def print_summary(summary: Mapping[str, Any], page: Path, console: Console | None = None) -> None:
    """Prints the table, what every kind of evidence says, the verdict with its checks, and where the page lies."""
    summary = shown(summary)
    console = console or Console(width=100 if not Console().is_terminal else None)
    table = Table(
        title=escape(f"{summary['data']}, {summary['loss']}: accuracy on the {summary['split']} split"),
        title_justify="left",
    )
    for heading, justify in (
        ("", "left"),
        ("settings", "left"),
        ("accuracy [95 % interval]", "right"),
        ("correct", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows_of(summary):
        table.add_row(*map(escape, row), style="bold" if row[0] in ("clean", "worst case") else None)
    console.print(table)
    for heading, lines in evidence_lines(summary).items():
        print_part(heading, lines, console)
    if "detection" in summary:
        console.print()
        print_detection(summary, console)
    if "unknown" in summary:
        console.print()
        print_unknown(summary, console)
    if tolerated := tolerance(summary["checks"]):
        print_part("Checks", [tolerated], console)
    beside = " ".join([checks_line(summary["checks"]), *summary.get("remarks", ())])
    console.print(f"\nVerdict: [bold]{summary['verdict']}[/bold]. {escape(beside)}", soft_wrap=True)
    console.print(f"Page: {printable(str(page))}", soft_wrap=True, markup=False)


def print_part(heading: str, lines: Sequence[str], console: Console) -> None:
    """Prints lines below a heading, and a blank line before it."""
    console.print(f"\n[bold]{heading}[/bold]")
    for line in lines:
        console.print(line, markup=False)


def print_detection(summary: Mapping[str, Any], console: Console) -> None:
    """Prints a row of every detector and attacker, and what is claimed."""
    rate = 100 * summary["detection"]["fpr"]
    table = Table(title=f"Detectors at a false-positive rate of {rate:g} %", title_justify="left")
    for position, heading in enumerate(detection.HEADINGS[:-1]):
        table.add_column(heading, justify="right" if position > 1 else "left")
    for row in detection.detection_rows(summary):
        table.add_row(*map(escape, row[:-1]), style="bold" if row[1] == detection.THREATS["white_box"] else None)
    console.print(table)
    for line in detection.claims(summary):
        console.print(line, markup=False)


def print_unknown(summary: Mapping[str, Any], console: Console) -> None:
    """Prints a row of every set of unknown images, detector and kind of input."""
    table = Table(title=escape(unknown.title(summary)), title_justify="left")
    for position, heading in enumerate(unknown.HEADINGS):
        table.add_column(heading, justify="right" if position > 2 else "left")
    for row in unknown.unknown_rows(summary):
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(unknown.NOTE, markup=False)
