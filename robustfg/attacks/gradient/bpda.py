"""Backward pass differentiable approximation (Athalye et al. 2018): gradients through parts that have none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from robustfg.core.errors import UserError
from robustfg.core.straight_through import straight_through

Surrogate = Callable[[Tensor], Tensor]


def identity(value: Tensor) -> Tensor:
    """The usual surrogate, for parts that change their input little."""
    return value


class Bpda(nn.Module):
    """Answers like one module and differentiates like another.

    Args:
        exact: what is run forward, such as a quantiser or a JPEG coder.
        surrogate: a differentiable function of the same input whose derivative is taken instead.
    """

    def __init__(self, exact: nn.Module, surrogate: Surrogate = identity) -> None:
        super().__init__()
        self.exact = exact
        self.surrogate = surrogate

    def forward(self, value: Tensor) -> Tensor:
        """Like ``exact``."""
        with torch.no_grad():
            answer: Tensor = self.exact(value)
        stand_in = self.surrogate(value)
        if stand_in.shape != answer.shape:
            shapes = tuple(answer.shape), tuple(stand_in.shape)
            raise UserError(f"the surrogate must give the module's shape {shapes[0]}, it gives {shapes[1]}")
        return straight_through(answer, stand_in)


@contextmanager
def differentiable(model: nn.Module, surrogates: Mapping[str, Surrogate]) -> Iterator[None]:
    """Lets gradients pass parts of a model that stop them; the parts are put back after, also after an error.

    ``with differentiable(model, {"backbone.quantise": identity}): adversarial = attack(model, image, label)``

    Args:
        model: the model.
        surrogates: what to differentiate instead, by the part's name in ``model.named_modules()``. A part that
            stands in several places is replaced in all of them, by whichever name it is called.
    """
    parts = dict(model.named_modules(remove_duplicate=False))
    replaced: dict[nn.Module, str] = {}
    with ExitStack() as stack:
        for name, surrogate in surrogates.items():
            if not name or name not in parts:
                raise UserError(f"surrogates: the model has no part {name!r}; it has {', '.join(filter(None, parts))}")
            exact = parts[name]
            if exact in replaced:
                raise UserError(f"surrogates: {replaced[exact]!r} and {name!r} are the same part; name it once")
            replaced[exact] = name
            instead = Bpda(exact, surrogate).train(exact.training)
            for parent, _, child in (place.rpartition(".") for place, part in parts.items() if part is exact):
                setattr(parts[parent], child, instead)
                stack.callback(setattr, parts[parent], child, exact)
        yield
