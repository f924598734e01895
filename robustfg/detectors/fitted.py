"""Fitted and calibrated detectors as a file of plain data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.files import write_atomically
from robustfg.core.safe_load import read_plain
from robustfg.detectors.base import Detector
from robustfg.detectors.threshold import threshold_at

VERSION = 2


@dataclass(frozen=True)
class Fitted:
    """Detectors that know what is normal, and from which score on something is not.

    Attributes:
        detectors: by name.
        nodes: of every detector, the config node it was built from, in plain containers.
        calibration: of every detector, its scores of calibration samples, ``(n,)``, ascending.
        about: what else is worth keeping, in plain containers, such as the classifier's fingerprint.
    """

    detectors: Mapping[str, Detector]
    nodes: Mapping[str, Mapping[str, Any]]
    calibration: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.detectors.keys() == self.nodes.keys() == self.calibration.keys():
            names = [sorted(part) for part in (self.detectors, self.nodes, self.calibration)]
            raise UserError(f"detectors, nodes and calibration must have the same names, got {names}")

    def tau(self, name: str, fpr: float) -> float:
        """The threshold of a detector at a false-positive rate, see ``threshold_at``."""
        if name not in self.calibration:
            raise UserError(f"detector={name} is not among the fitted ones: {', '.join(self.calibration)}")
        return threshold_at(self.calibration[name], fpr)

    def write(self, path: str | Path) -> None:
        """Writes tensors and plain containers, beside and renamed."""
        content = {
            "robustfg_detectors": VERSION,
            "nodes": {name: dict(node) for name, node in self.nodes.items()},
            "states": {name: _on_cpu(detector) for name, detector in self.detectors.items()},
            "calibration": {name: scores.detach().cpu() for name, scores in self.calibration.items()},
            "about": dict(self.about),
        }
        with write_atomically(path) as file:
            torch.save(content, file)

    @classmethod
    def read(cls, path: str | Path, build: Callable[[Mapping[str, Any], str], Detector]) -> "Fitted":
        """Reads what ``write`` wrote, without running anyone's code.

        Args:
            path: the file.
            build: makes a detector of a node; the second argument names the option, for messages. It must refuse
                nodes that name anything untrusted.

        Raises:
            UserError: if the file is missing, damaged or not of this kind, or a detector has changed since.
        """
        content = _content(Path(path))
        detectors = {}
        for name, node in content["nodes"].items():
            detector = build(node, f"detector.{name}")
            try:
                detector.load_state_dict(content["states"][name])
            except (RuntimeError, KeyError) as error:
                raise UserError(f"{path}: what {name} learned does not fit it any more; evaluate again") from error
            detectors[name] = detector.eval()
        return cls(detectors, content["nodes"], content["calibration"], content["about"])


def _on_cpu(detector: Detector) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in detector.state_dict().items()}


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there are no fitted detectors at {path}; evaluate with detector=… first")
    content = read_plain(path, str(path), "file of fitted detectors")
    parts = ("nodes", "states", "calibration", "about")
    ours = isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in parts)
    if not ours or content.get("robustfg_detectors") != VERSION:
        raise UserError(f"{path} holds no detectors that this version of robustfg wrote")
    return dict(content)
