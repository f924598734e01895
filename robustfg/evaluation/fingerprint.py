"""What an evaluation's rows belong to: weights, samples and settings."""

import hashlib
import json
from collections.abc import Mapping

from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(weights: str, ids: str, name: str, description: Mapping[str, object]) -> str:
    """Identifies the rows of one attack on these weights and samples."""
    text = json.dumps([weights, ids, name, dict(description)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
