"""Checkpoints: plain containers only, read without running anyone's code."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.safe_load import read_plain
from robustfg.models.backbone import unused_names
from robustfg.models.resizable import resize_to

PARTS = ("data", "model", "loss", "training", "optimizer", "scheduler", "seed", "names")
"""Parts of the config without which a classifier cannot be rebuilt."""

NAMED = 3
"""Tensors of a kind that a message names."""


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to rebuild a classifier.

    Attributes:
        path: the file.
        option: the option that named it, for messages.
        config: of the run that wrote it.
        classes: names of the classes, in order.
        state: the weights by name.
        epochs: how many whole epochs they were trained for.
        steps: how many optimizer steps.
        splits: which samples the run trains, chooses and tests on, packed; None in files of earlier versions.
    """

    path: Path
    option: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    state: dict[str, Tensor]
    epochs: int = 0
    steps: int = 0
    splits: str | None = None

    @classmethod
    def read(cls, path: str | Path, option: str = "checkpoint") -> "Checkpoint":
        """Reads a file with ``weights_only=True``.

        Raises:
            UserError: if it is missing, a folder, truncated, not ours, or holds anything but plain data.
        """
        given, path = path, Path(path).expanduser()
        if path.is_dir():
            best = path / "checkpoints" / "best.ckpt"
            raise UserError(f"{option}={path} is a folder; give {f'{option}={best}' if best.is_file() else 'a file'}")
        if not path.is_file():
            remote = "://" in str(given)
            raise UserError(f"{option}={given}: {'download it first and give the file' if remote else 'no such file'}")
        content = read_plain(path, f"{option}={path}", "checkpoint")
        ours = content.get("robustfg") if isinstance(content, dict) else None
        if not (
            isinstance(ours, dict)
            and isinstance(ours.get("config"), dict)
            and isinstance(ours.get("classes"), list)
            and all(isinstance(name, str) for name in ours["classes"])
            and isinstance(content.get("state_dict"), dict)
            and ours["config"].keys() >= set(PARTS)
        ):
            alone = isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values())
            hint = ": it holds weights alone, which model.weights takes" if alone else ""
            raise UserError(f"{option}={path} was not written by robustfg.train{hint}")
        return cls(path, option, ours["config"], tuple(ours["classes"]), content["state_dict"], _epochs(content),
                   int(content.get("global_step", 0)), ours.get("splits"))  # fmt: skip

    def load_into(self, module: nn.Module) -> None:
        """Copies the weights into a module of the same architecture. Raises ``UserError`` if it is another.

        Parts that training may shrink, such as pruned prototypes, take on the checkpoint's sizes first.
        """
        resize_to(module, self.state)
        own, unused = module.state_dict(), unused_names(module) & self.state.keys()
        if unused:
            warnings.warn(f"{self.option}={self.path}: {_listed(unused)} is not used and left out", stacklevel=2)
        differences = {
            "missing": own.keys() - self.state.keys(),
            "unknown": self.state.keys() - own.keys() - unused,
            "of another shape": {k for k in own.keys() & self.state.keys() if own[k].shape != self.state[k].shape},
        }
        if found := [f"{_listed(names)} {what}" for what, names in differences.items() if names]:
            raise UserError(
                f"{self.option}={self.path} belongs to another architecture: {'; '.join(found)}; check model, loss and "
                "data.image_size"
            )
        module.load_state_dict(self.state)

    def expect_classes(self, classes: tuple[str, ...]) -> None:
        """Raises ``UserError`` if data with these classes cannot be classified by this checkpoint."""
        if classes != self.classes:
            differing = next((pair for pair in zip(self.classes, classes, strict=False) if pair[0] != pair[1]), None)
            detail = f"; class {differing[0]!r} against {differing[1]!r}" if differing else ""
            raise UserError(
                f"data has {len(classes)} classes and {self.option}={self.path} was trained on {len(self.classes)}"
                f"{detail}; choose the data it was trained on"
            )


def _epochs(content: dict[str, Any]) -> int:
    """What Lightning's loops have counted; 0 where there is none of it."""
    try:
        return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):
        return 0


def _listed(names: set[str]) -> str:
    """The first names of a set, and how many more there are."""
    shown = sorted(names)[:NAMED]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
