"""Prints detection results of evaluations as a Markdown table: table.py FOLDER [FOLDER ...]."""

import json
import sys
from pathlib import Path
from typing import Any

ATTACKERS = {"semi_white_box": "ignores it", "black_box": "sees answers", "white_box": "knows both"}


def main(folders: list[str]) -> None:
    """One row a run, detector and attacker, in the order in which the runs were made."""
    print("| run | detector | attacker | AUROC, successful | AUROC, worst case | joint robust accuracy | verdict |")
    print("|---" * 7 + "|")
    for folder in sorted(folders, key=lambda folder: (Path(folder) / "provenance.json").stat().st_mtime):
        summary = json.loads((Path(folder) / "robustness" / "summary.json").read_text())
        name = Path(folder).name.removeprefix("detection-")
        clean, worst = summary["clean"], summary["worst_case"]
        print(f"| {name} | none | | | | {share(worst)}, clean {share(clean)} | {summary['verdict']} |")
        for detector, found in summary["detection"]["detectors"].items():
            for threat, attacker in ATTACKERS.items():
                told = found["threats"][threat]
                rankings = [told["ranking"][positives]["auroc"] for positives in ("successful", "worst_case")]
                verdict = found["verdict"] if threat == "white_box" else ""
                cells = [name, detector, attacker, *map(auroc, rankings), share(told["joint"]), verdict]
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
