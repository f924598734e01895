"""Creating a timm network with pretrained, local or fresh weights, and errors that say which file to put where."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from robustfg.core.errors import UserError


def check_name(name: str) -> None:
    """Raises ``UserError``, with close names, unless ``name`` is a timm model, with or without the tag of weights."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=5)
        raise UserError(f"model.name={name} is no timm model; close names: {', '.join(close) or 'none'}")
    tags = timm.list_models(f"{base}.*", include_tags=True)
    if tag and name not in tags:
        raise UserError(f"model.name={name}: timm has no such weights, only {', '.join(tags) or 'untagged ones'}")


def create(name: str, *, pretrained: bool, weights: str | None, **arguments: Any) -> nn.Module:
    """``timm.create_model`` whose failures are told as ``UserError``.

    Args:
        name: a timm model name that ``check_name`` accepts.
        pretrained: download timm's weights (or take them from the hub's cache).
        weights: a local ``.safetensors`` or ``.pth`` file of that network's weights, instead of the download.
        arguments: passed to ``timm.create_model``.
    """
    if weights is not None:
        return _from_file(name, Path(weights).expanduser(), arguments)
    try:
        return _create(name, pretrained=pretrained, **arguments)
    except Exception as error:
        if not pretrained or isinstance(error, UserError):
            raise
        config = timm.get_pretrained_cfg(name)
        source = (config and (config.hf_hub_id or config.url)) or "its publisher"
        raise UserError(
            f"model.pretrained=true: the weights of {name} could not be downloaded ({type(error).__name__}). Fetch "
            f"them from {source} on a machine with internet, put model.safetensors here and set "
            "model.weights=/path/to/model.safetensors"
        ) from error


def _create(name: str, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(name, **arguments)
    except Exception as error:  # networks refuse arguments in any way
        if arguments.get("pretrained"):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"model.options do not fit {name}: {type(error).__name__}: {reason}"[:400]) from error


def _from_file(name: str, path: Path, arguments: dict[str, Any]) -> nn.Module:
    """Loads through timm, which converts layouts and resizes position embeddings; every tensor must come from the file.

    timm passes over tensors that a file lacks. A second network, loaded from the same tensors filled with NaN, tells
    them: whatever is still a number there did not come from the file.
    """
    if not path.is_file():
        raise UserError(f"model.weights={path}: no such file")
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise UserError(f"model.weights={path}: need a .safetensors or .pth file")
    source: dict[str, Any] = {"hf_hub_id": None, "url": "", "custom_load": False}
    if arguments.get("num_classes"):  # the file's own last layer is wanted, whatever its size
        source["num_classes"] = arguments["num_classes"]
    with torch.random.fork_rng(devices=[]):
        try:
            # timm would read the file itself, but older versions run the code that it may hold.
            given = timm.models.load_state_dict(str(path), weights_only=True)
            loaded = _create(
                name, pretrained=True, pretrained_cfg_overlay=source | {"state_dict": {**given}}, **arguments
            )
            config: Any = loaded.pretrained_cfg
            config["state_dict"] = None  # the tensors are copied
            blank = {
                key: torch.full_like(value, torch.nan) if value.is_floating_point() else value
                for key, value in given.items()
            }
            probe = _create(name, pretrained=True, pretrained_cfg_overlay=source | {"state_dict": blank}, **arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"model.weights={path} does not hold weights of {name}: {' '.join(lines)[:300]}") from error
    missing = [
        key for key, value in probe.state_dict().items() if value.is_floating_point() and not value.isnan().any()
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"model.weights={path} lacks tensors of {name}: {', '.join(missing[:3])}{more}; the file's names must be "
            "timm's"
        )
    return loaded
