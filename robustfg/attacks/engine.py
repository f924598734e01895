"""How a model is run while it is attacked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustfg.attacks.contract import checked
from robustfg.attacks.folding import folded
from robustfg.attacks.freeze import Model, attackable
from robustfg.attacks.randomness import keyed_generators, seed_generators
from robustfg.attacks.recording import Recorded, recorded
from robustfg.attacks.trial import trial_images
from robustfg.errors import UserError
from robustfg.types import Output, joined, mapped

Mode = Literal["cudagraphs", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""``"cudagraphs"`` records CUDA graphs and compiles nothing; the others are those of ``torch.compile``."""
FEW = 5
"""With fewer passes neither a copy nor a recording is a gain on a GPU: trying it takes as long as two of them."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Speed and exactness of a search. Where they leave open who has won, the model itself is asked (``Referee``).

    Args:
        fold: search on a private copy with batch norms folded, weights in channels-last layout and a cheaper gradient
            of the first convolution; it is used only if its answers agree.
        autocast: half precision for the search, ``"bfloat16"`` or ``"float16"``. Worth it on GPUs only: on a CPU
            without such units it is twenty times slower.
        compile: asks for ``fixed_batch``. ``"cudagraphs"``: record the passes of the search's model as CUDA graphs,
            which takes less than a second and pays where a GPU waits for its host, with small images or networks; on
            the CPU and for a model with random parts it does nothing. True, or a mode of ``torch.compile``: compile
            that model, which takes half a minute and more; ``"reduce-overhead"`` and ``"max-autotune"`` record CUDA
            graphs, too.
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
    compile: bool | Mode = False
    fixed_batch: int | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        if self.autocast not in (None, *DTYPES):
            raise UserError(f"engine.autocast must be null, bfloat16 or float16, got {self.autocast}")
        if self.fixed_batch is not None and self.fixed_batch < 1:
            raise UserError(f"engine.fixed_batch must be >= 1 or null, got {self.fixed_batch}")
        if self.compile not in (False, True, *get_args(Mode)):
            known = ", ".join(get_args(Mode))
            raise UserError(f"engine.compile must be false, true or one of {known}; got {self.compile}")
        if self.compile and self.fixed_batch is None:
            raise UserError("engine.compile needs engine.fixed_batch: every new batch size would be compiled again")
        if self.samples < 1:
            raise UserError(f"engine.samples must be >= 1, got {self.samples}")

    @property
    def half(self) -> torch.dtype | None:
        """The type of autocast."""
        return None if self.autocast is None else DTYPES[self.autocast]

    def exact(self) -> "Engine":
        """The same without what changes answers by rounding."""
        return replace(self, fold=False, autocast=None, compile=False)

    def describe(self) -> Mapping[str, object]:
        """What differs from the defaults, for an attack's description."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"engine": changed} if changed else {}

    @contextmanager
    def running(
        self, model: Model, image: Tensor, classes: int = 0, key: tuple[int | str, ...] = (), passes: int = FEW
    ) -> Iterator["Run"]:
        """The model frozen and prepared, and torch's generators seeded; all given back as it was, also after an error.

        Args:
            model: what is attacked.
            image: some of the images; a private copy is tried on others of their shape.
            classes: how many it must know at least.
            key: of the model's own random numbers.
            passes: about how many will be asked for.
        """
        with attackable(model):
            with keyed_generators(image.device, "trial"):
                quick = self._quickened(model, image, passes)
            exact = quick is model and self.autocast is None
            with keyed_generators(image.device, *key, "model"):
                yield Run(self, quick, None if exact else model, classes, key)

    def _quickened(self, model: Model, image: Tensor, passes: int) -> Model:
        """What the search runs on; the model itself where nothing else pays or answers alike."""
        quick = model
        if self.fold and isinstance(model, nn.Module) and (passes >= FEW or image.device.type == "cpu"):
            quick = folded(model, trial_images(image))
        if self.compile == "cudagraphs" and passes >= FEW:
            assert self.fixed_batch is not None
            return recorded(quick, _filled(trial_images(image)[: self.fixed_batch], self.fixed_batch), self.half)
        if self.compile and self.compile != "cudagraphs":
            return torch.compile(quick, dynamic=False, mode=None if self.compile is True else self.compile)
        return quick


class Run:
    """A prepared model.

    Attributes:
        engine: how it was prepared.
        model: what is run.
        itself: the attacked model; None where it is what is run, in full precision.
        classes: how many the model must know at least.
        key: of the model's own random numbers.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        itself: Model | None = None,
        classes: int = 0,
        key: tuple[int | str, ...] = (),
    ) -> None:
        self.engine, self.model, self.itself, self.classes, self.key = engine, model, itself, classes, key
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
        return self._in_pieces(self._forward, image, index)

    @torch.no_grad()
    def own(self, image: Tensor, index: Tensor | None = None) -> Output | Tensor:
        """The attacked model's own answer in full precision, averaged alike."""
        model = self.model if self.itself is None else self.itself
        return average([self._in_pieces(model, image, index) for _ in range(self.engine.samples)])

    def _in_pieces(self, forward: Model, image: Tensor, index: Tensor | None) -> Output | Tensor:
        """Of a fixed size where the engine says so."""
        size = self.engine.fixed_batch
        if size is None or not len(image):
            return forward(image)
        ids = index.tolist() if size == 1 and index is not None else []
        pieces = []
        for place, piece in enumerate(torch.split(image, size)):
            if ids:
                self._passes[ids[place]] += 1
                seed_generators(image.device, *self.key, "model", ids[place], self._passes[ids[place]])
            pieces.append(forward(_filled(piece, size)))
        return mapped(joined(pieces), lambda value: value[: len(image)])

    def _forward(self, image: Tensor) -> Output | Tensor:
        half = self.engine.half
        compiled = self.engine.compile and not isinstance(self.model, Recorded)
        if compiled and image.requires_grad:
            image = image.view_as(image)
            # A CUDA graph writes its next gradient over this one, and its next answer.
            image.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]
        with torch.autocast(image.device.type, half) if half else nullcontext():
            output = checked(self.model(image), len(image), self.classes)
        if compiled:
            output = mapped(output, torch.Tensor.clone)
        return mapped(output, torch.Tensor.float) if half else output


def average(answers: Sequence[Output | Tensor]) -> Output | Tensor:
    """The mean of several answers to the same images."""
    if len(answers) == 1:
        return answers[0]
    return mapped(joined(answers), lambda value: torch.stack(value.chunk(len(answers))).mean(0))


def _filled(image: Tensor, size: int) -> Tensor:
    """So many images in the usual layout: in another one other kernels may run."""
    missing = size - len(image)
    image = torch.cat([image, image[:1].detach().expand(missing, -1, -1, -1)]) if missing else image
    return image.contiguous()
