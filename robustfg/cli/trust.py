"""What a stored config may instantiate: a checkpoint of a stranger's must not run code of theirs."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from robustfg.core.errors import UserError

TRUSTED = tuple(f"robustfg.{package}." for package in ("attacks", "data", "detectors", "losses", "models", "training"))
TRUSTED_CLASSES = {
    "torch.optim": {"Adam", "AdamW", "SGD"},
    "torchvision.transforms.v2": {
        "CenterCrop", "ColorJitter", "GaussianBlur", "RandAugment", "RandomAffine", "RandomCrop", "RandomErasing",
        "RandomGrayscale", "RandomHorizontalFlip", "RandomPerspective", "RandomResizedCrop", "RandomRotation",
        "RandomVerticalFlip", "Resize", "TrivialAugmentWide",
    },
}  # fmt: skip
"""What a stored config may name: classes of ours, by resolved identity, and these exact names."""

INSTANTIATED = ("data", "model", "loss", "training", "optimizer", "scheduler")
"""Parts of a stored config from which a classifier and its data are made again."""


FETCHING = ("download", "pretrained")
"""Options that make a constructor fetch something, wherever they stand."""
FILES = ("weights", "checkpoint_path")
"""Options of networks that name a file of weights, which a checkpoint has no need of: it holds its own."""
ADDRESSED = ("name", *FILES, "hf_hub_id", "url", "file", "path", "root")
"""Options that may name an address."""
SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""Prefixes of network names that make timm load from a hub or a folder, in upper or lower case."""


def offline(node: Any) -> Any:
    """A stored node with which nothing is fetched and no file of weights is read, to the bottom.

    Raises:
        UserError: where a network or data are named by an address, a hub or a folder of networks instead.
    """
    if isinstance(node, Mapping):
        for key in ADDRESSED:
            if isinstance(value := node.get(key), str) and "://" in value:
                raise UserError(f"the checkpoint's {key}={value[:80]} would be fetched; nothing is for a checkpoint")
        return {key: _offline(key, value) for key, value in node.items()}
    if isinstance(node, list | tuple | set | frozenset):
        return [offline(value) for value in node]
    if isinstance(node, str) and node.strip().casefold().startswith(SOURCES):
        raise UserError(f"the checkpoint's {node[:80]} would be fetched or read; nothing is for a checkpoint")
    return node


def _offline(key: Any, value: Any) -> Any:
    if key in FETCHING and value:
        return False
    safe = offline(value)
    return None if key in FILES and isinstance(safe, str) else safe


def refuse_untrusted_config(stored: Mapping[str, Any], trust: tuple[str, ...] = ()) -> None:
    """``refuse_untrusted`` on every part of a checkpoint's config that is instantiated."""
    refuse_untrusted({part: stored[part] for part in INSTANTIATED}, trust)


def refuse_untrusted(node: Any, trust: tuple[str, ...] = ()) -> None:
    """Raises ``UserError`` if a stored config names anything to instantiate that is neither ours nor trusted.

    Args:
        node: plain containers, searched to the bottom.
        trust: further package prefixes that the user vouches for, such as ``"mypackage."``.
    """
    if isinstance(node, dict):
        if "_args_" in node:  # would reach arguments without their names
            raise UserError("the checkpoint's config holds arguments without names, which robustfg writes nowhere")
        if "_target_" in node:
            _refuse_target(str(node["_target_"]), trust)
        for key, value in node.items():
            refuse_untrusted(key, trust)
            refuse_untrusted(value, trust)
    elif isinstance(node, list):
        for value in node:
            refuse_untrusted(value, trust)
    elif isinstance(node, str):
        if "${" in node:  # would be resolved, and resolvers can build anything
            raise UserError(f"the checkpoint's config is not resolved: it holds {node[:60]}")
    elif not (node is None or isinstance(node, bool | int | float)):
        raise UserError(f"the checkpoint's config holds a {type(node).__name__}, which is no plain data")


def _refuse_target(target: str, trust: tuple[str, ...]) -> None:
    prefixes = TRUSTED + tuple(prefix.rstrip(".") + "." for prefix in trust)
    package, _, name = target.rpartition(".")
    allowed = name in TRUSTED_CLASSES.get(package, ())
    if target.startswith(prefixes):  # nothing else may even be imported
        try:
            thing = get_class(target)
        except (ImportError, ValueError) as error:
            raise UserError(f"the checkpoint names {target}, which does not exist here") from error
        allowed = f"{thing.__module__}.".startswith(prefixes)
    if not allowed:
        raise UserError(
            f"the checkpoint names {target}, which is not robustfg's; add it with trust=[…] if you trust it"
        )
