"""What a run was made from: versions, hardware, commit, seed, samples."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from robustfg import __version__

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "torchmetrics", "numpy", "pillow")


def provenance(
    *, seed: int, splits: dict[str, Any], command: list[str], init_from: Mapping[str, str] | None
) -> dict[str, Any]:
    """Everything needed to tell later where a number came from, as plain containers."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": repeatable(command),
        "robustfg": __version__,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "threads": torch.get_num_threads(),
        },
        "seed": seed,
        "splits": splits,
        "init_from": init_from,
    }


def repeatable(command: list[str]) -> list[str]:
    """What was typed, as it can be typed again anywhere: a module's file is named as the module.

    Args:
        command: ``sys.argv``.
    """
    if not command or Path(command[0]).suffix != ".py" or Path(command[0]).parent.name != "robustfg":
        return command
    return ["python", "-m", f"robustfg.{Path(command[0]).stem}", *command[1:]]


def _commit() -> str | None:
    """Commit of the checkout the code runs from, with ``+changes`` if files differ from it; None outside one."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
