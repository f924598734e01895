"""Prints run folders as a Markdown table, one row each: python experiments/table.py FOLDER [FOLDER ...]."""

import json
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    """One row a run: accuracies with 95 % Wilson intervals, correct of all samples, and the verdict."""
    summaries = [json.loads((Path(folder) / "robustness" / "summary.json").read_text()) for folder in folders]
    attacks = list(dict.fromkeys(name for summary in summaries for name in summary["attacks"]))
    print("| run | seed | clean | " + " | ".join(attacks) + " | worst case | verdict |")
    print("|---" * (len(attacks) + 5) + "|")
    for folder, summary in zip(folders, summaries, strict=True):
        parts = [summary["clean"], *(summary["attacks"].get(name) for name in attacks), summary["worst_case"]]
        cells = [cell(part) if part else "–" for part in parts]
        print(f"| {folder} | {summary['seed']} | " + " | ".join(cells) + f" | {summary['verdict']} |")


def cell(part: dict[str, object]) -> str:
    """Accuracy, interval and counts."""
    low, high = part["ci95"]
    return f"{100 * part['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({part['correct']}/{part['n']})"


if __name__ == "__main__":
    main(sys.argv[1:])
