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
