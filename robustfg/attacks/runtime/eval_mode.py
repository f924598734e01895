"""A model as an attack needs it: eval mode, parameters frozen, gradients on; everything put back after."""

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from robustfg.core.errors import UserError
from robustfg.core.types import Output, pixels_checked

Model = Callable[[Tensor], Output | Tensor]

FOREIGN = "builtins", "functools", "torch", "numpy", "pytorch_lightning", "lightning"
"""Packages whose objects are not looked into."""
SMALL = 2**16
"""Buffers of more values are no running statistics, and copying them costs time and memory."""


@dataclass(frozen=True)
class AsItIs:
    """A model whose modules keep their modes: it is attacked with the batch's own statistics and dropout."""

    model: Model

    def __call__(self, image: Tensor) -> Output | Tensor:
        """The model's answer."""
        return self.model(image)


def bare(model: Model) -> Model:
    """What lies inside a wrapper that spreads batches over devices or ranks: those synchronise in every pass."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


@contextmanager
def attackable(model: Model, *, listens: bool = True, buffers: bool = False) -> Iterator[None]:
    """Freezes a model's parameters and switches it to eval mode, also when called under ``inference_mode``.

    Modules that a function, a bound method or a plain list hides are switched, too, before they run. Modes, flags and
    small buffers are restored on the way out, also after an error or Ctrl-C. ``AsItIs`` keeps its modes.

    Args:
        model: a module or a function.
        listens: look at every module that runs inside; compilers mind.
        buffers: put small buffers back, too; false where something is fitted inside.

    Raises:
        UserError: for anything that cannot be called, such as a tensor in the model's place.
    """
    if not callable(model):
        raise UserError(
            f"the model must be a module or function of images (B, C, H, W) in [0, 1], got {type(model).__name__}"
        )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        token = pixels_checked.set(True)
        stack.callback(lambda: pixels_checked.reset(token))
        if not isinstance(model, AsItIs):
            held = _Held(buffers)
            stack.callback(held.restore)
            for module in held_by(model):
                held.take(module)
            if listens and not held.compiled:
                stack.callback(register_module_forward_pre_hook(held.before).remove)
        yield


def held_by(model: object) -> Iterator[nn.Module]:
    """The module that a callable is, or those in its closure, its arguments, its object and the globals it names."""
    seen: list[object] = []  # alive, so that no identity is given twice
    known: set[int] = set()
    todo = [model]
    while todo:
        thing = todo.pop()
        if id(thing) in known:
            continue
        known.add(id(thing))
        seen.append(thing)
        if isinstance(thing, nn.Module):
            yield thing
        else:
            todo += _inside(thing, outermost=thing is model)


def _inside(thing: object, *, outermost: bool) -> list[object]:
    if getattr(thing, "__module__", type(thing).__module__).partition(".")[0] in FOREIGN:
        return _parts(thing)
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        named = [thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__]
        callables = [value for value in named if isinstance(value, nn.Module | FunctionType | functools.partial)]
        wrapped = getattr(thing, "__wrapped__", None)
        return [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *callables, wrapped]
    if isinstance(thing, MethodType | functools.partial):
        return _parts(thing)
    return list(getattr(thing, "__dict__", {}).values()) if outermost or callable(thing) else []


def _parts(thing: object) -> list[object]:
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, list | tuple | set):
        return list(thing)
    return list(thing.values()) if isinstance(thing, Mapping) else []


def _filled(cell: object) -> bool:
    try:
        return cell.cell_contents is not None  # type: ignore[attr-defined]
    except ValueError:
        return False


def _names(code: CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


class _Held:
    """The modules of one attack and how they were."""

    def __init__(self, buffers: bool) -> None:
        self._keeps = buffers
        self._thread = threading.get_ident()
        self._known: set[nn.Module] = set()
        self._training: list[nn.Module] = []
        self._trainable: list[nn.Parameter] = []
        self._buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` has made any of the modules."""
        return any(type(part).__name__ == "OptimizedModule" or part._compiled_call_impl for part in self._known)

    def before(self, module: nn.Module, inputs: object) -> None:
        """Called before any module runs: takes those that nothing else has shown."""
        if getattr(module, "training", False) and threading.get_ident() == self._thread:
            self.take(module)

    def take(self, module: nn.Module) -> None:
        """Switches a module with all its parts to eval mode, and freezes it."""
        parts = [part for part in module.modules() if part not in self._known]
        self._known.update(parts)
        training = [part for part in parts if getattr(part, "training", False)]
        trainable = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
        self._training += training
        self._trainable += trainable
        for part in parts if self._keeps else ():
            for name, buffer in part.named_buffers(recurse=False):
                if buffer.numel() <= SMALL and not buffer.is_inference():
                    self._buffers.append((part, name, buffer, buffer.detach().clone()))
        if training:
            try:
                module.eval()
            except NotImplementedError:  # an exported program
                for part in training:
                    part.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back; a model whose buffers changed although it was in eval mode is reported."""
        for part in self._training:
            part.training = True
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        changed = False
        for part, name, buffer, value in self._buffers:
            if getattr(part, name, None) is not buffer:
                setattr(part, name, buffer)
                changed = True
            if not bool(((buffer == value) | (buffer != buffer) & (value != value)).all()):  # NaN stays NaN
                buffer.copy_(value)
                changed = True
        if changed:
            warnings.warn(
                "the model changes its buffers in eval mode, such as running statistics: it was attacked while they "
                "changed, and they were put back",
                stacklevel=3,
            )
