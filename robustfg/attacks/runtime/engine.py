"""How a model is run while it is attacked."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustfg.attacks.rng.philox import keyed_generators, seed_generators
from robustfg.attacks.runtime.cuda_graphs import in_pieces, recorded
from robustfg.attacks.runtime.eval_mode import AsItIs, Model, attackable, bare, held_by
from robustfg.attacks.runtime.folding import AGREEMENT, ROUNDING, apart, folded, spread_of
from robustfg.attacks.runtime.validation import checked
from robustfg.core.errors import OptionsByName, UserError
from robustfg.core.types import Output, joined, logits_of, mapped

Mode = Literal["cudagraphs", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""``"cudagraphs"`` records CUDA graphs and compiles nothing; the others are those of ``torch.compile``."""
FEW = 5
"""With fewer passes neither a copy nor a recording is a gain: the first and the last are the model's own."""
GPU_PERIOD = 5
"""Steps after which a GPU drops fooled samples: the host then waits for it, which takes as long as a step or more."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def steps_between_drops(device: torch.device) -> int:
    """Number of an attack's steps after which fooled samples are dropped from the batch."""
    return 1 if device.type == "cpu" else GPU_PERIOD


@dataclass(frozen=True, kw_only=True)
class Engine(OptionsByName):
    """Speed and exactness of a search. Its successes are confirmed by the model itself (``Confirmation``).

    By default all that makes a search fast is chosen from device, batch and model, and ``exact()`` uses none of it.

    Args:
        fold: search on a private, faster copy of the model, with batch norms folded and weights in channels-last
            layout. It is used only if its answers agree, for searches of a few passes and more, and not for a model
            that draws random numbers. False: search on the model itself.
        autocast: half precision for the search, ``"bfloat16"`` or ``"float16"``. Worth it on GPUs only: on a CPU
            without such units it is twenty times slower.
        compile: ``"auto"``: replay the passes of the copy as CUDA graphs where that pays (``recording``). False: never.
            ``"cudagraphs"``: whenever it is possible, from the first batch on. True, or a mode of ``torch.compile``,
            with ``fixed_batch`` only: compile the copy, which takes half a minute and more.
        fixed_batch: run the model on exactly so many images at a time, filling up with copies, so that perturbations
            do not depend on the caller's batch to the last bit (on a GPU: with deterministic kernels, which
            ``trainer.deterministic=true`` asks for). A private copy is still tried on one image and on four. None: as
            many as are still attacked.
        samples: forward passes over which the answers of a model with random parts are averaged; margins and
            objectives are those of the mean answer, and gradient attacks climb the mean objective (expectation over
            transformation, Athalye et al. 2018). The model's own random numbers are keyed by attack and restart; with
            ``fixed_batch=1`` also by sample and pass, so that results depend neither on batch nor on order.
    """

    fold: bool = True
    autocast: Literal["bfloat16", "float16"] | None = None
    compile: bool | Mode | Literal["auto"] = "auto"
    fixed_batch: int | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        if self.autocast not in (None, *DTYPES):
            raise UserError(f"engine.autocast must be null, bfloat16 or float16, got {self.autocast}")
        if self.fixed_batch is not None and self.fixed_batch < 1:
            raise UserError(f"engine.fixed_batch must be >= 1 or null, got {self.fixed_batch}")
        if self.compile not in (False, True, "auto", *get_args(Mode)):
            known = ", ".join(get_args(Mode))
            raise UserError(f"engine.compile must be auto, false, true or one of {known}; got {self.compile}")
        if self.compiles and self.fixed_batch is None:
            raise UserError("engine.compile needs engine.fixed_batch: every new batch size would be compiled again")
        if self.samples < 1:
            raise UserError(f"engine.samples must be >= 1, got {self.samples}")

    @property
    def half(self) -> torch.dtype | None:
        """The type of autocast."""
        return None if self.autocast is None else DTYPES[self.autocast]

    @property
    def compiles(self) -> bool:
        """Whether ``torch.compile`` is asked for."""
        return self.compile not in (False, "auto", "cudagraphs")

    def exact(self) -> "Engine":
        """The same on the model itself, without what changes answers by rounding."""
        return replace(self, fold=False, autocast=None, compile="auto")

    def describe(self) -> Mapping[str, object]:
        """What differs from the defaults, for an attack's description."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"engine": changed} if changed else {}

    @contextmanager
    def running(
        self, model: Model, image: Tensor, classes: int = 0, key: tuple[int | str, ...] = (), passes: int = FEW
    ) -> Iterator["Run"]:
        """The model frozen and prepared, and torch's generators seeded; all given back as it was, also after an error.

        Arguments as for ``Run``; ``image`` is one of the batch's device.
        """
        chosen = self.compile == "auto" and self.fold and not getattr(model, "training", False)  # weights would change
        graphs = chosen or self.compile == "cudagraphs"
        with attackable(model, listens=not self.compiles, buffers=True), keyed_generators(image.device, *key, "model"):
            yield Run(self, bare(model), classes, key, passes, graphs=graphs)


class Run:
    """A prepared model.

    The first question is answered by the model itself. If the search is long enough and the model draws no random
    numbers, a surrogate copy answers the others. The model gets copies of the images, which it may overwrite, in the
    type of its weights if it refuses them as they are. Answers in half precision become float32.

    Args:
        engine: how it is run.
        original: the attacked model.
        classes: how many the model must know at least.
        key: of the model's own random numbers.
        passes: about how many will be asked for.
        graphs: CUDA graphs may be recorded.
        surrogate: answers all questions but the first; None: the engine chooses.

    Attributes:
        by_model: whether the last answer was the model's own, in full precision.
        surrogate_used: whether any answer was a copy's.
    """

    def __init__(
        self, engine: Engine, original: Model, classes: int = 0, key: tuple[int | str, ...] = (), passes: int = FEW,
        graphs: bool = False, surrogate: Model | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.original, self.classes, self.key = engine, original, classes, key
        self.by_model, self.surrogate_used = True, False
        self._surrogate, self._seeks = (
            surrogate,
            surrogate is None and passes >= FEW and not isinstance(original, AsItIs),
        )
        self._graphs = graphs
        self._type: torch.dtype | None = None
        self._asked = 0
        self._spread = torch.zeros(())
        self._passes: Counter[int] = Counter()

    def __call__(self, image: Tensor, index: Tensor | None = None) -> Output | Tensor:
        """The answer to ``(B, C, H, W)``, averaged over the engine's ``samples`` forward passes.

        Args:
            image: ``(B, C, H, W)``.
            index: ``(B,)`` sample ids, which key the random numbers of a model that sees one image at a time.
        """
        return average([self.once(image, index) for _ in range(self.engine.samples)])

    def once(self, image: Tensor, index: Tensor | None = None) -> Output | Tensor:
        """One forward pass."""
        self.by_model = self._surrogate is None or self._asked < self.engine.samples
        self._asked += 1
        self.surrogate_used |= not self.by_model
        ask = self._by_surrogate if not self.by_model else self._first if self._asked == 1 else self._own
        return self._in_pieces(ask, image, index)

    @torch.no_grad()
    def own(self, image: Tensor, index: Tensor | None = None) -> Output | Tensor:
        """The attacked model's own answer in full precision, averaged alike."""
        ask = self._own if self._asked else self._first
        return average([self._in_pieces(ask, image, index) for _ in range(self.engine.samples)])

    def differs(self, own: Tensor, other: Tensor) -> Tensor:
        """Whether a copy's logits ``(n, K)`` differ from the model's ``own`` by more than rounding, ``(n,)`` bool."""
        if self.engine.half is not None or torch.is_autocast_enabled(own.device.type):
            return apart(own, other, 10 * AGREEMENT, 10 * AGREEMENT * self._spread)
        return apart(own, other, AGREEMENT, ROUNDING * self._spread)

    def drop_surrogate(self) -> None:
        """The model itself answers from here on: a copy has answered otherwise."""
        self._surrogate = None

    def logit_error(self, output: Output | Tensor) -> Tensor:
        """By how much a logit must lead in ``output`` so that it surely leads, ``(n,)``: rounding, to aim beyond it."""
        logits = logits_of(output).detach()
        unit = torch.finfo(self.engine.half or logits.dtype).eps
        rounding = 2 if self.by_model or self.engine.half else 16
        return rounding * unit * logits.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax(1)

    def _in_pieces(self, forward: Model, image: Tensor, index: Tensor | None) -> Output | Tensor:
        """Of a fixed size where the engine says so."""
        size = self.engine.fixed_batch
        if size is None or not len(image):
            return forward(image)
        if size == 1 and index is not None:
            ids = iter(index.tolist())
            return in_pieces(lambda one: self._alone(forward, one, next(ids)), image, 1)
        return in_pieces(forward, image, size)

    def _alone(self, forward: Model, image: Tensor, sample: int) -> Output | Tensor:
        """One image, the model's random numbers keyed by the sample and its passes so far."""
        self._passes[sample] += 1
        seed_generators(image.device, *self.key, "model", sample, self._passes[sample])
        return forward(image)

    def _own(self, image: Tensor) -> Output | Tensor:
        return self._checked(self.original(self._given(image)), image)

    def _first(self, image: Tensor) -> Output | Tensor:
        """The model's own answer to the first question; a surrogate copy is made meanwhile."""
        seeks, self._seeks = self._seeks, False
        try:
            return self._checked(self._answer(self._given(image), seeks), image, first=True)
        except Exception:
            others = {p.dtype for m in held_by(self.original) for p in m.parameters() if p.is_floating_point()}
            if len(others) != 1 or image.dtype in others:
                raise
            try:
                self._type = others.pop()
                return self._checked(self._answer(self._given(image), seeks), image, first=True)
            except Exception:
                self._type = None
            raise

    def _answer(self, image: Tensor, seeks: bool) -> Output | Tensor:
        engine, copy = self.engine, None
        if not seeks or (engine.exact() == engine):
            return self.original(image.clone())
        drawn = _generators(image.device)
        if engine.fold and isinstance(self.original, nn.Module):
            answer, copy = folded(self.original, image)
        else:
            answer = self.original(image.clone())
        if all(map(torch.equal, drawn, _generators(image.device))):
            with keyed_generators(image.device, "trial"):
                self._surrogate = self._surrogate_of(copy, image)
        return answer

    def _surrogate_of(self, copy: nn.Module | None, image: Tensor) -> Model | None:
        """What the search runs on; None where nothing but the model itself pays or answers alike."""
        engine, model = self.engine, copy or self.original
        if self._graphs:
            self._alive = copy  # recordings hold it weakly
            surely = engine.compile == "cudagraphs"
            played = recorded(self.original, model, image.detach(), engine.half, size=engine.fixed_batch, surely=surely)
            if played is not None:
                return played
        if engine.compiles:
            return torch.compile(model, dynamic=False, mode=None if engine.compile is True else str(engine.compile))
        return copy or (model if engine.half else None)

    def _given(self, image: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Images of the model's own, in the usual layout, whatever that of gradients is."""
        return image.clone(memory_format=layout) if self._type is None else image.to(self._type, memory_format=layout)

    def _by_surrogate(self, image: Tensor) -> Output | Tensor:
        if self._surrogate is None:
            return self._own(image)
        try:
            return self._searched(self._surrogate, image)
        except Exception as error:  # a speed-up never ends an attack
            if isinstance(error, UserError) and self.engine.compile != "auto":
                raise
            if self.engine.compiles:
                warnings.warn(f"engine.compile: the model runs as it is, {error}", stacklevel=2)
            self._surrogate = None
            return self._own(image)

    def _searched(self, surrogate: Model, image: Tensor) -> Output | Tensor:
        half, given = self.engine.half, self._given(image, torch.preserve_format)
        compiled = self.engine.compiles
        if compiled and given.requires_grad:
            # A CUDA graph writes its next gradient over this one, and its next answer.
            given.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]
        with torch.autocast(image.device.type, half) if half else nullcontext():
            output = self._checked(surrogate(given), image)
        return mapped(output, torch.Tensor.clone) if compiled else output

    def _checked(self, answer: Output | Tensor, image: Tensor, *, first: bool = False) -> Output | Tensor:
        answer = mapped(checked(answer, len(image), self.classes), _whole)
        if first and len(image):
            self._spread = spread_of(logits_of(answer).detach()).amax()
        return answer


def _whole(value: Tensor) -> Tensor:
    """In float32 where it was in half precision, fit for autograd, and none that a model may write over later."""
    value = value.clone() if value.is_inference() or value.dim() <= 2 else value  # maps are large, and read at once
    return value.float() if value.dtype in DTYPES.values() else value


def _generators(device: torch.device) -> list[Tensor]:
    """States of the generators, which change where random numbers are drawn."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def average(answers: Sequence[Output | Tensor]) -> Output | Tensor:
    """The mean of several answers to the same images."""
    if len(answers) == 1:
        return answers[0]
    return mapped(joined(answers), lambda value: torch.stack(value.chunk(len(answers))).mean(0))
