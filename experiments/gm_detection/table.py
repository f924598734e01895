"""Prints detection results of evaluations as Markdown tables: table.py FOLDER [FOLDER ...]."""

import json
import sys
from pathlib import Path
from typing import Any

ATTACKERS = {"semi_white_box": "ignores it", "black_box": "sees answers", "white_box": "knows both"}


def main(folders: list[str]) -> None:
    """One row a run, detector and attacker or unknown set, in the order in which the runs were made."""
    ordered = sorted(folders, key=lambda folder: (Path(folder) / "provenance.json").stat().st_mtime)
    summaries = {
        Path(folder).name.replace("detection-", "").removesuffix("-detection"): json.loads(
            (Path(folder) / "robustness/summary.json").read_text()
        )
        for folder in ordered
    }
    print("| run | detector | attacker | AUROC, successful | AUROC, worst case | joint robust accuracy | verdict |")
    print("|---" * 7 + "|")
    for name, summary in summaries.items():
        attacked(name, summary)
    print("\n| run | detector | unknown images | AUROC, clean | AUROC, attacked | accepted clean | accepted attacked |")
    print("|---" * 7 + "|")
    for name, summary in summaries.items():
        unknown(name, summary)


def attacked(name: str, summary: dict[str, Any]) -> None:
    """Rows of one run's detectors against every attacker."""
    clean, worst = share(summary["clean"]), share(summary["worst_case"])
    row(name, "none", "", "", "", f"{worst}, clean {clean}", summary["verdict"])
    for detector, found in summary["detection"]["detectors"].items():
        for threat, attacker in ATTACKERS.items():
            told = found["threats"][threat]
            rankings = [told["ranking"][positives]["auroc"] for positives in ("successful", "worst_case")]
            verdict = found["verdict"] if threat == "white_box" else ""
            row(name, detector, attacker, *map(auroc, rankings), share(told["joint"]), verdict)


def unknown(name: str, summary: dict[str, Any]) -> None:
    """Rows of one run's detectors on every set of unknown images."""
    headline = summary["detection"]["fpr"]
    for images, told in summary.get("unknown", {}).items():
        for detector, found in told["detectors"].items():
            states = [found["clean"], found["attacked"]]
            accepted = [
                at["unknown_accepted"] for state in states for at in state["accepted"] if at["alpha"] == headline
            ]
            shares = [f"{100 * part['share']:.1f} % ({part['count']}/{part['n']})" for part in accepted]
            row(name, detector, images, *(f"{state['auroc']:.3f}" for state in states), *shares)


def row(*cells: str) -> None:
    """A line of a Markdown table."""
    print("| " + " | ".join(cells) + " |")


def share(part: dict[str, Any]) -> str:
    """A share of samples with its 95 % interval and counts."""
    low, high = part["ci95"]
    return f"{100 * part['accuracy']:.1f} % [{100 * low:.0f}, {100 * high:.0f}] ({part['correct']}/{part['n']})"


def auroc(part: dict[str, Any]) -> str:
    """An area with its 95 % interval; a dash where there was nothing to rank."""
    if part["value"] is None:
        return "–"
    low, high = part["ci95"]
    return f"{part['value']:.3f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
