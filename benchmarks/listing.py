"""Listing a large tree: time and memory of a first start, of later ones, and of what was done before, in processes.

Run: python benchmarks/listing.py [--images 200000] [--classes 1000]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {
    "paths in strings": """
import os
from robustfg.data.listing import SUFFIXES
found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
keys = [p.relative_to(root).as_posix() for p in found]
sizes = [(root / key).stat().st_size for key in keys]
""",
    "listed": "from robustfg.data.listing import listed; found = listed(root)",
    "read from where it is kept": """
from robustfg.data.listing import KEPT_IN, listed
KEPT_IN.set(Path(sys.argv[2]))
found = listed(root)
""",
}
FRAME = """
import resource, sys, time
from pathlib import Path
import robustfg.data.listing
root, before, start = Path(sys.argv[1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
{way}
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def measured(way: str, root: Path, kept: Path) -> tuple[float, float]:
    """Seconds of CPU and MB of a process that does nothing else."""
    words = [sys.executable, "-c", FRAME.format(way=way), str(root), str(kept)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return float(told[0]), float(told[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, kept = Path(folder, "tree"), Path(folder, "kept")
        for label in range(options.classes):
            (root / f"n{label:08d}").mkdir(parents=True)
            for number in range(options.images // options.classes):
                (root / f"n{label:08d}" / f"n{label:08d}_{number}.JPEG").touch()
        time.sleep(2.5)  # until the folders' times of change are believed
        measured(WAYS["read from where it is kept"], root, kept)  # keeps it
        first = None
        for name, way in WAYS.items():
            seconds, size = measured(way, root, kept)
            first = first or (seconds, size)
            print(f"{name:28} {seconds:6.2f} s  {size:6.1f} MB   {seconds / first[0]:.3f}, {size / first[1]:.3f}")


if __name__ == "__main__":
    main()
