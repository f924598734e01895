"""A network's passes as CUDA graphs: the host launches one graph instead of every kernel.

A graph fixes the number of images, so smaller batches are filled up. Recording takes some passes and part of a second,
and pays where a GPU waits for its host, which it does with small images, batches or networks. By default passes are
recorded when a model meets a batch of the same size for the second time with the same weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustfg.attacks.runtime.eval_mode import Model
from robustfg.attacks.runtime.folding import runs_as_a_whole
from robustfg.core.errors import UserError
from robustfg.core.types import Output, joined, logits_of, mapped

AGREEMENT = 1e-5
"""Largest difference of logits, relative to their spread, at which a recording is believed."""
WARM_UP = 3
"""Passes before a recording in which libraries choose their kernels; in one more, waits of the host are errors."""
LARGEST = 2**20
"""Pixels of a batch (B H W) up to which the GPU waits for its host: 64 images of 64 px gain most of the time, 1,024
nothing (ResNet-18 on an H200)."""
SIZES = 3
"""Batch sizes of a model that are recorded at most by default; each takes the memory of its activations."""


class Recorded:
    """Answers as a model does, with its passes replayed.

    There are as many recordings as answers whose graphs are alive at once: one holds the activations of one answer.
    What decides the passes besides weights and images, such as an attribute that the forward pass reads, stays as it
    was when they were recorded.

    Args:
        model: frozen and in eval mode; held weakly.
        size: number of images in a pass.
        half: run under autocast with this type.
    """

    def __init__(self, model: nn.Module, size: int, half: torch.dtype | None) -> None:
        self._size, self._half = size, half
        self._read: list[Tensor] = []  # weights that recordings read
        self.of(model)
        self._form: Output | Tensor | None = None
        self._recordings: list[Recording] = []

    def of(self, model: nn.Module) -> None:
        """Takes another model with the same weights, as the one before may be gone."""
        self._model = ref(model)

    def __call__(self, image: Tensor) -> Output | Tensor:
        """The answer to ``(n, C, H, W)`` on a GPU. Raises ``UserError`` for a model that cannot be recorded."""
        return in_pieces(self._replayed, image, self._size)

    def _replayed(self, image: Tensor) -> Output | Tensor:
        free = next((recording for recording in self._recordings if not recording.busy), None)
        if free is None:
            free = Recording(self._flat, image)
            self._recordings.append(free)
            model = self._model()
            assert model is not None
            self._read += [*model.parameters(), *model.buffers()]
        parts = iter(cast(tuple[Tensor, ...], _Replay.apply(image, free)))
        assert self._form is not None
        return mapped(self._form, lambda _: next(parts))

    @torch.no_grad()
    def agrees(self, image: Tensor) -> bool:
        """Whether the model still answers ``(n, C, H, W)`` as recorded."""
        own, played = (logits_of(in_pieces(answer, image, self._size)) for answer in (self._answer, self._replayed))
        return bool((own - played).abs().max() <= AGREEMENT * (own.max() - own.min()))

    def _flat(self, image: Tensor) -> tuple[Tensor, ...]:
        self._form = self._answer(image)
        return tuple(_tensors(self._form))

    def _answer(self, image: Tensor) -> Output | Tensor:
        model, half = self._model(), self._half
        assert model is not None
        # Cached casts would be made outside the graph once and be missing in it.
        with torch.autocast(image.device.type, half, enabled=half is not None, cache_enabled=False):
            answer: Output | Tensor = model(image.clone())
        return answer if half is None else mapped(answer, torch.Tensor.float)


class Recording:
    """One forward and one backward pass as graphs that share their memory.

    Args:
        passes: images to tensors.
        image: an image batch to record with.
    """

    def __init__(self, passes: Callable[[Tensor], tuple[Tensor, ...]], image: Tensor) -> None:
        self._image = image.detach().clone().requires_grad_()
        self._graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self._held: ref[_Held] | None = None
        try:
            # A recording that fails leaves its stream current.
            with torch.enable_grad(), torch.cuda.device(image.device), torch.cuda.stream(torch.cuda.current_stream()):
                self._warm_up(passes)
                with torch.cuda.graph(self._graphs[0]):
                    self._answers = passes(self._image)
                self.differentiable = [answer.requires_grad for answer in self._answers]
                self._weights = [torch.zeros_like(answer) for answer in self._moved(self._answers)]
                self._gradient = torch.zeros_like(self._image)
                if self._weights:
                    with torch.cuda.graph(self._graphs[1], pool=self._graphs[0].pool()):
                        self._gradient = self._differentiated(self._answers, self._weights)
        except RuntimeError as error:
            raise UserError(
                f"engine.compile: no CUDA graph of this model can be recorded; choose another mode or false ({error})"
            ) from error

    @property
    def busy(self) -> bool:
        """Whether the gradient of the last answer may still be asked for."""
        return self._held is not None and self._held() is not None

    def hold(self) -> "_Held":
        """The recording is busy as long as the returned object lives."""
        held = _Held()
        self._held = ref(held)
        return held

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The answers, copied: the next ones are written where these lie."""
        self._image.detach().copy_(image)
        self._graphs[0].replay()
        return tuple(answer.detach().clone() for answer in self._answers)

    def backward(self, weights: tuple[Tensor, ...]) -> Tensor:
        """The gradient to the image; it may be asked for several times."""
        for place, weight in zip(self._weights, self._moved(weights), strict=True):
            place.copy_(weight)
        if self._weights:
            self._graphs[1].replay()
        return self._gradient.clone()

    def _moved(self, values: tuple[Tensor, ...]) -> list[Tensor]:
        """Those of the answers that depend on the image."""
        return [value for value, moves in zip(values, self.differentiable, strict=True) if moves]

    def _differentiated(self, answers: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
        # With the graph kept no activation is written over, so that the pass can be played again.
        (gradient,) = torch.autograd.grad(self._moved(answers), self._image, weights, retain_graph=True)
        return gradient

    def _warm_up(self, passes: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._once(passes)
            with _no_waiting():
                self._once(passes)
        torch.cuda.current_stream().wait_stream(stream)

    def _once(self, passes: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        answers = passes(self._image)
        self.differentiable = [answer.requires_grad for answer in answers]
        if any(self.differentiable):
            self._differentiated(answers, [torch.zeros_like(answer) for answer in self._moved(answers)])


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Refuses what reads values back. While a graph is recorded it would leave torch's generator useless."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Held:
    """Lives as long as the graph of an answer."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, recording: Recording) -> tuple[Tensor, ...]:
        ctx.recording, ctx.held = recording, recording.hold()
        answers = recording.forward(image)
        pairs = zip(answers, recording.differentiable, strict=True)
        ctx.mark_non_differentiable(*(answer for answer, moves in pairs if not moves))
        return answers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        return ctx.recording.backward(weights), None


_KEPT: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Recorded | Literal[False] | None]] = WeakKeyDictionary()
"""Recordings of every attacked model by size, types and state of the weights; None: not recorded yet, False: in vain.

They hold weights and answers, but no module: one may refer to the model, which would then never be freed."""


def recorded(
    original: Model, model: Model, image: Tensor, half: torch.dtype | None, *, size: int | None, surely: bool
) -> Model | None:
    """A model's passes replayed; None on the CPU, where that does not pay, and where a recording answers otherwise.

    Recordings are kept as long as the weights of ``original`` stay the same; every call compares answers.

    Args:
        original: the attacked model.
        model: it or its copy, frozen and in eval mode.
        image: ``(B, C, H, W)``.
        half: run under autocast with this type; None: as it would be run now.
        size: images in a pass; None: the power of two from B on.
        surely: record at once, and raise ``UserError`` for a model that cannot be recorded.
    """
    if not image.is_cuda or not isinstance(model, nn.Module) or not isinstance(original, nn.Module):
        return None
    if not surely and not pays(original, image):
        return None
    kind = image.device.type
    if half is None and torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
    size = size or 1 << (len(image) - 1).bit_length()
    weights = tuple((tensor.data_ptr(), tensor._version) for tensor in (*original.parameters(), *original.buffers()))
    key = size, tuple(image.shape[1:]), image.dtype, half, model is original, weights
    kept = _KEPT.setdefault(original, {})
    for elsewhere in [other for other in kept if other[-1] != weights]:
        del kept[elsewhere]
    met, known = key in kept, kept.get(key)
    if known is False:
        return None
    if known is not None:
        known.of(model)
        if known.agrees(image):
            return known
    kept[key] = None
    if not surely and (not met or sum(isinstance(other, Recorded) for other in kept.values()) >= SIZES):
        return None
    fresh = Recorded(model, size, half)
    try:
        kept[key] = fresh if fresh.agrees(image) else False
    except UserError:
        if surely:
            raise
        kept[key] = False
    return kept[key] or None


def pays(original: nn.Module, image: Tensor) -> bool:
    """Whether graphs are worth their recording: small batches ``(B, C, H, W)``, and plain modules on one device."""
    small = len(image) * image.shape[2] * image.shape[3] <= LARGEST
    if not small or any(runs_as_a_whole(part) for part in original.modules()):
        return False
    return all(tensor.device == image.device for tensor in (*original.parameters(), *original.buffers()))


def in_pieces(forward: Model, image: Tensor, size: int) -> Output | Tensor:
    """Answers to ``(n, C, H, W)``, so many images at a time in the usual layout; the last piece is filled up.

    In another layout other kernels may run, which round otherwise.
    """
    pieces = []
    for piece in torch.split(image, size):
        missing = size - len(piece)
        filled = torch.cat([piece, piece[:1].detach().expand(missing, -1, -1, -1)]) if missing else piece
        pieces.append(forward(filled.contiguous()))
    whole = pieces[0] if len(pieces) == 1 else joined(pieces)
    return mapped(whole, lambda value: value[: len(image)])


def _tensors(answer: Output | Tensor) -> Iterator[Tensor]:
    found: list[Tensor] = []
    mapped(answer, lambda value: found.append(value) or value)  # type: ignore[func-returns-value]
    yield from found
