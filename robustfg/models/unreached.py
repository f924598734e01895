"""Parameters of a network that its features do not depend on, such as the norm before a head that is not used."""

from typing import Any

from torch import Tensor, nn


def unreached(network: nn.Module, features: Tensor) -> list[str]:
    """Names of trainable parameters that are not in the graph of ``features``; none where there is no graph."""
    if features.grad_fn is None:
        return []
    seen: set[Any] = set()
    todo: list[Any] = [features.grad_fn]
    reached: set[int] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        todo += [before for before, _ in node.next_functions]
    return [name for name, value in network.named_parameters() if value.requires_grad and id(value) not in reached]


def drop(network: nn.Module, names: list[str]) -> None:
    """Removes parameters; modules keep None in their place."""
    for name in names:
        owner, _, key = name.rpartition(".")
        network.get_submodule(owner).register_parameter(key, None)


def drop_from_optimizers(checkpoint: dict[str, Any], own: set[str], unused: set[str]) -> None:
    """Takes parameters out of the optimizers' states of a Lightning checkpoint, in place.

    Args:
        checkpoint: of a module whose first parameters, and whose optimizers' first, are those of its backbone.
        own: names of the module's parameters now.
        unused: names of the backbone's that the checkpoint may hold beside.
    """
    then = [name for name in checkpoint["state_dict"] if name in own | unused]
    gone = {number for number, name in enumerate(then) if name in unused}
    for state in checkpoint.get("optimizer_states", ()) if gone else ():
        kept = [number for group in state["param_groups"] for number in group["params"] if number not in gone]
        now = {number: place for place, number in enumerate(kept)}
        for group in state["param_groups"]:
            group["params"] = [now[number] for number in group["params"] if number in now]
        state["state"] = {now[number]: value for number, value in state["state"].items() if number in now}
