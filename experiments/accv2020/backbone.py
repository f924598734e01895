"""Takes the backbone out of a checkpoint, as weights that another run can start from with model.weights=TARGET.

python experiments/accv2020/backbone.py RUN/checkpoints/best.ckpt TARGET.safetensors
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

from robustfg.checkpoint import Checkpoint

PREFIX = "backbone.network."


def main(source: str, target: str) -> None:
    """Reads, renames to timm's names, writes."""
    weights = Checkpoint.read(Path(source)).state
    taken = {name[len(PREFIX) :]: value.contiguous() for name, value in weights.items() if name.startswith(PREFIX)}
    save_file(taken, target)
    print(f"{target}: {len(taken)} tensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
