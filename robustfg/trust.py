"""What a stored config may instantiate: a checkpoint of a stranger's must not run code of theirs."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

from robustfg.errors import UserError

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


def offline(node: Any) -> Any:
    """A stored node with which nothing is fetched: options that ask for it are false, to the bottom.

    Raises:
        UserError: where a network is named by an address or a hub instead.
    """
    if isinstance(node, Mapping):
        for key in ("name", "weights", "checkpoint_path", "hf_hub_id", "url", "file"):
            if isinstance(value := node.get(key), str) and ("://" in value or value.startswith(("hf-hub:", "hf_hub:"))):
                raise UserError(f"the checkpoint's {key}={value[:80]} would be fetched; nothing is for a checkpoint")
        return {key: False if key in FETCHING and value else offline(value) for key, value in node.items()}
    return [offline(value) for value in node] if isinstance(node, list) else node


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
