"""A network's passes as CUDA graphs: the host launches one graph instead of every kernel."""

from collections.abc import Callable, Iterator
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn

from robustfg.attacks.freeze import Model
from robustfg.errors import UserError
from robustfg.types import Output, logits_of, mapped

KEPT = "_robustfg_recorded"
"""Attribute of the model under which its recordings live, and with which they die."""
AGREEMENT = 1e-5
"""Largest difference of logits, relative to their spread, at which a recording is believed."""


class Recordings(dict[tuple[object, ...], "Recording"]):
    """By shape, types and place of the weights; left out where the model is copied or pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, ()


class Recording:
    """Forward and backward pass to images of one shape, played from memory; answers are written over by the next ones.

    What decides the passes besides weights and images, such as an attribute that the forward pass reads, is as it was
    when they were recorded.

    Args:
        model: frozen and in eval mode.
        image: ``(B, C, H, W)`` on a GPU; only images of this shape can be asked about.
        half: run under autocast with this type.

    Raises:
        UserError: for a model that cannot be recorded.
    """

    def __init__(self, model: nn.Module, image: Tensor, half: torch.dtype | None) -> None:
        self._model = ref(model)
        self._half = half
        self._form: Output | Tensor | None = None
        sample = (image.detach().clone().requires_grad_(),)
        try:
            with torch.autocast(image.device.type, enabled=False):
                play = torch.cuda.make_graphed_callables(self._flat, sample, allow_unused_input=True)
                self._play = cast(Callable[[Tensor], tuple[Tensor, ...]], play)
        except RuntimeError as error:
            raise UserError(
                f"engine.compile: no CUDA graph of this model can be recorded; choose another mode or false ({error})"
            ) from error

    def __call__(self, image: Tensor) -> Output | Tensor:
        parts = iter(self._play(image))
        assert self._form is not None
        return mapped(self._form, lambda _: next(parts))

    def agrees(self, model: nn.Module, image: Tensor) -> bool:
        """Whether ``model`` still answers what was recorded."""
        with torch.no_grad():
            own, played = logits_of(self._answer(model, image)), logits_of(self(image))
        return bool((own - played).abs().max() <= AGREEMENT * (own.max() - own.min()))

    def _answer(self, model: nn.Module, image: Tensor) -> Output | Tensor:
        if self._half is None:
            with torch.autocast(image.device.type, enabled=False):
                return model(image)  # type: ignore[no-any-return]
        # Cached casts would be made outside the graph once and be missing in it.
        with torch.autocast(image.device.type, self._half, cache_enabled=False):
            return mapped(model(image), torch.Tensor.float)

    def _flat(self, image: Tensor) -> tuple[Tensor, ...]:
        model = self._model()
        assert model is not None
        self._form = self._answer(model, image)
        return tuple(_tensors(self._form))


def recorded(model: Model, image: Tensor, half: torch.dtype | None) -> Model:
    """A recording of a model's passes, or the model itself on the CPU and where a recording does not answer alike.

    Recordings are kept as long as the weights lie where they are; every call compares answers.

    Args:
        model: frozen and in eval mode.
        image: ``(B, C, H, W)``.
        half: run under autocast with this type; None: as it would be run now.
    """
    if not image.is_cuda or not isinstance(model, nn.Module):
        return model
    kind = image.device.type
    if half is None and torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
    places = tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
    key = tuple(image.shape), image.dtype, half, places
    kept: Recordings = model.__dict__.setdefault(KEPT, Recordings())
    for known in [other for other in kept if other[-1] != places]:
        del kept[known]
    if key in kept and kept[key].agrees(model, image):
        return kept[key]
    fresh = kept[key] = Recording(model, image, half)
    return fresh if fresh.agrees(model, image) else model


def _tensors(answer: Output | Tensor) -> Iterator[Tensor]:
    found: list[Tensor] = []
    mapped(answer, lambda value: found.append(value) or value)  # type: ignore[func-returns-value]
    yield from found
