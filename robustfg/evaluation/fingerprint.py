"""What an evaluation's rows belong to: weights, samples and settings."""

import hashlib
import json

from torch import nn


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
