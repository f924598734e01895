"""A private copy of a network that answers alike and is faster.

Batch norms are folded into the convolutions before them, whose weights are in channels-last layout; on the CPU the
first convolution is a ``Stem``. Structure is copied and all other tensors are shared, so the original is never touched.
Which batch norm follows which convolution is seen by running the network once; the copy is believed only if its answers
agree. Modules that somebody listens to with hooks stay what they are.
"""

from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustfg.arithmetic import exact_arithmetic
from robustfg.attacks.stem import Stem
from robustfg.models.layout import Thinned, suits_channels_last
from robustfg.types import logits_of

AGREEMENT = 2e-5
"""Largest difference at which the copy is believed: of logits, relative to their spread, and of detectors' scores,
relative to themselves."""

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
"""Where a module keeps those that listen to it."""
OURS = "_robustfg_"
"""What we leave in a model begins so."""
KEPT = OURS + "folded"
"""Attribute of the model under which its copy lives, and with which it dies: a copy may refer to the model, as a
Lightning module does through its trainer, so anything else that held it would hold the model."""


class Kept:
    """A copy and the state of the model it was made of; left out where the model is copied or pickled.

    Attributes:
        spread: the largest spread of logits compared: one image's may be nearly equal.
    """

    def __init__(self, state: object = None, copy: nn.Module | None = None) -> None:
        self.state, self.copy, self.spread = state, copy, 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()

    def agrees(self, model: nn.Module, image: Tensor) -> bool:
        """Whether there is a copy and it answers as ``model`` does."""
        if self.copy is None:
            return False
        with exact_arithmetic():  # with TF32 or autocast both are off by more than they may differ
            answers = model(image), self.copy(image)
        own, theirs = map(logits_of, answers)
        if not isinstance(own, Tensor):  # no classifier's answer: the model's own will be refused
            return False
        self.spread = max(self.spread, float(own.max() - own.min()))
        if not bool((own - theirs).abs().max() <= AGREEMENT * self.spread):
            return False
        scores, others = ({} if isinstance(answer, Tensor) else answer.scores for answer in answers)
        return all(
            bool(((score - others[name]).abs() <= AGREEMENT * score.abs()).all()) for name, score in scores.items()
        )


@torch.no_grad()
def folded(model: nn.Module, image: Tensor) -> nn.Module:
    """A copy of ``model`` in eval mode with batch norms folded, or ``model`` itself where that gains nothing.

    Copies are kept as long as the weights stay the same; every call compares answers with the model's own. A kept copy
    that disagrees is made anew; a new one that does is given up.

    Args:
        model: in eval mode.
        image: images to compare answers on, ``(B, C, H, W)``: a new copy's on all, a kept one's on the first.
    """
    on_cpu = image.device.type == "cpu"
    if not len(image) or not any(isinstance(m, nn.BatchNorm2d) or (on_cpu and Stem.suits(m)) for m in model.modules()):
        return model
    state = _fingerprint(model)
    kept: Kept = model.__dict__.get(KEPT, Kept())
    if kept.state != state or (kept.copy and not kept.agrees(model, image[:1])):  # ``.data`` tells no change
        kept = model.__dict__[KEPT] = Kept(state, _fold(model, image))
        if not kept.agrees(model, image):
            kept.copy = None
    return model if kept.copy is None else kept.copy


def _fingerprint(model: nn.Module) -> object:
    tensors = [*model.parameters(), *model.buffers()]
    weights = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors)
    return weights, tuple(ref(module) for module in model.modules())  # equal only while they are the same modules


def _fold(model: nn.Module, image: Tensor) -> nn.Module | None:
    swaps: dict[nn.Module, nn.Module] = {}
    for norm, (convolution, width) in _convolutions_before_norms(model, image).items():
        last = suits_channels_last(image.device, width)
        swaps[convolution], swaps[norm] = _fused(convolution, norm, channels_last=last), _rest(norm)
    if image.device.type == "cpu":
        stems = [module for module in model.modules() if Stem.suits(module) and _unwatched(module)]
        swaps |= {stem: Stem(cast(nn.Conv2d, swaps.get(stem, stem))) for stem in stems}
    return _rebuilt(model, swaps, {}) if swaps else None


def _convolutions_before_norms(model: nn.Module, image: Tensor) -> dict[nn.BatchNorm2d, tuple[nn.Conv2d, int]]:
    """Batch norms whose input is exactly what a convolution gave, and how wide that is; each used once in a pass."""
    gave: dict[int, tuple[nn.Conv2d, int]] = {}  # with the version, which a change in place raises
    pairs: dict[nn.BatchNorm2d, tuple[nn.Conv2d, int]] = {}
    calls: dict[nn.Module, int] = {}
    outputs: list[Tensor] = []  # kept alive, so that no identity is given twice

    def after(module: nn.Module, inputs: object, output: Tensor) -> None:
        if module in foldable:
            calls[module] = calls.get(module, 0) + 1
            outputs.append(output)
            gave[id(output)] = cast(nn.Conv2d, module), output._version
        if len(module._forward_hooks) > 1:  # someone else listens, perhaps to a block that ends in a convolution
            gave.pop(id(output), None)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        norm, given = cast(nn.BatchNorm2d, module), inputs[0] if inputs else None
        convolution, version = gave.get(id(given), (None, 0))
        if convolution is not None and given is not None and given._version == version:
            pairs[norm] = convolution, given.shape[-1]

    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    foldable, absorbable = ({module for module in modules if may(module)} for may in (_foldable, _absorbable))
    hooks = [module.register_forward_hook(after) for module in modules]
    hooks += [module.register_forward_pre_hook(before_norm) for module in absorbable]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    once = {norm: pair for norm, pair in pairs.items() if calls[norm] == calls[pair[0]] == 1}
    taken = [convolution for convolution, _ in once.values()]
    return {norm: pair for norm, pair in once.items() if taken.count(pair[0]) == 1}


def _unwatched(module: nn.Module) -> bool:
    """Whether nobody listens to the module, or changes it before it is run, as the older ``weight_norm`` does."""
    listening = (hook for hooks in HOOKS for hook in getattr(module, hooks).values())
    return all(isinstance(hook, Thinned) for hook in listening)


def _foldable(module: nn.Module) -> bool:
    """Whether a batch norm may be folded into this."""
    return isinstance(module, nn.Conv2d) and "weight" in module._parameters and _unwatched(module)


def _absorbable(module: nn.Module) -> bool:
    """Whether this may be folded into a convolution."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or not _unwatched(module):
        return False
    return type(module) is nn.BatchNorm2d or _activated(module)


def _fused(convolution: nn.Conv2d, norm: nn.BatchNorm2d, *, channels_last: bool) -> nn.Conv2d:
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fused = _shallow(convolution)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    fused._parameters = {
        "weight": nn.Parameter(weight.detach().contiguous(memory_format=layout), requires_grad=False),
        "bias": nn.Parameter(bias.detach(), requires_grad=False),
    }
    if not channels_last:  # the one before may be in the other layout, which would be taken for both
        fused._forward_pre_hooks = fused._forward_pre_hooks.copy()
        fused.register_forward_pre_hook(_in_usual_layout)
    return fused  # type: ignore[return-value]


def _in_usual_layout(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(given.contiguous() if isinstance(given, Tensor) else given for given in inputs)


def _activated(norm: nn.Module) -> bool:
    """Whether this is timm's batch norm with dropout and activation behind it."""
    return type(norm).__name__ == "BatchNormAct2d" and hasattr(norm, "drop") and hasattr(norm, "act")


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    rest = nn.Sequential(norm.drop, norm.act) if _activated(norm) else nn.Identity()  # type: ignore[arg-type]
    return rest.eval()


def _shallow(module: nn.Module) -> nn.Module:
    """The same module with its own dictionary of parts."""
    copy: nn.Module = module.__class__.__new__(module.__class__)
    held = {name: value for name, value in module.__dict__.items() if not name.startswith(OURS)}
    copy.__dict__ = held | {"_modules": dict(module._modules)}
    return copy


def _rebuilt(module: nn.Module, swaps: dict[nn.Module, nn.Module], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """A structural copy with some modules exchanged; what occurs twice stays one module."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in done:
        copy = done[module] = swaps.get(module) or _shallow(module)
        if module not in swaps:
            copy._modules = {name: part and _rebuilt(part, swaps, done) for name, part in module._modules.items()}
    return done[module]
