"""What an evaluation's rows belong to: weights, samples and settings."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from robustfg.attacks import Attack


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(parts: list[object]) -> str:
    """A short hash of plain containers."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprints(about: Sequence[object], attacks: Mapping[str, Attack], others: Iterable[str]) -> dict[str, str]:
    """A hash of every kind of rows, by name: rows are continued only under the same.

    Args:
        about: what all rows depend on, in plain containers.
        attacks: by name; their rows depend on all of their settings.
        others: names of rows without settings, such as the clean ones.
    """
    settings: dict[str, dict[str, object]] = {name: {} for name in others}
    settings |= {name: dict(attack.settings()) for name, attack in attacks.items()}
    return {name: fingerprint([*about, name, text]) for name, text in settings.items()}
