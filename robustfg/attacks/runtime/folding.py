"""A private copy of a network that answers alike and is faster.

Batch norms are folded into the convolutions before them, whose weights are in channels-last layout; on the CPU the
first convolution is a ``Stem``. Structure is copied and all other tensors are shared, so the original is never touched.
Which batch norm follows which convolution is seen while the network answers the first question about the attacked
images. A copy lives no longer than a round. Modules with hooks stay as they are, and so do those whose pass is not made
of their parts' passes: scripts, traced graphs, compiled modules.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustfg.core.memory_layout import Thinned, suits_channels_last
from robustfg.core.types import Output, logits_of

AGREEMENT = 0.01
"""Largest difference of a sample's logits, relative to their spread, at which a copy is searched on. Its successes are
confirmed by the model in any case; rounding in half precision may move logits ten times as far."""
ROUNDING = 1e-4
"""Difference of logits that is always allowed, relative to the largest spread of the first answer."""
TRIED = 4
"""Images on which a new copy is compared at once; the others are compared when they leave the batch."""

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
"""Attributes in which a module keeps its hooks."""

Pairs = dict[nn.BatchNorm2d, tuple[nn.Conv2d, int]]
"""Batch norms and the convolutions before them, with the width of what passes between."""


def folded(model: nn.Module, image: Tensor) -> tuple[Output | Tensor, nn.Module | None]:
    """The model's own answer, and a copy with batch norms folded; None where it gains nothing or answers otherwise.

    Args:
        model: in eval mode.
        image: ``(B, C, H, W)``; the model gets copies of its own.
    """
    modules = list(_open(model))
    stems = [m for m in modules if image.device.type == "cpu" and Stem.suits(m) and _without_hooks(m)]
    if not stems and not any(isinstance(module, nn.BatchNorm2d) for module in modules):
        return model(image.clone()), None
    with _convolutions_before_norms(modules) as pairs:
        answer: Output | Tensor = model(image.clone())
    own = logits_of(answer)
    if not isinstance(own, Tensor) or own.dim() != 2:  # no classifier's answer: it will be refused
        return answer, None
    with torch.no_grad():
        try:
            copy = _fold(model, pairs, stems)
            if copy is None:
                return answer, None
            few = image.detach()[:TRIED].clone()
            theirs = copy(few)
            rounding = ROUNDING * spread_of(own.detach()).amax()
            agree = not bool(apart(own.detach()[:TRIED], logits_of(theirs), AGREEMENT, rounding).any())
            agree = agree and _same_scores(answer, theirs)
        except Exception:  # a speed-up never ends an attack
            return answer, None
    return answer, copy if agree else None


def spread_of(logits: Tensor) -> Tensor:
    """The largest minus the smallest finite logit, ``(n,)`` float64; 0 where there is none."""
    wide = logits.double()
    finite = wide.isfinite()
    high, low = wide.masked_fill(~finite, -torch.inf).amax(1), wide.masked_fill(~finite, torch.inf).amin(1)
    return (high - low).clamp_min(0)


def apart(own: Tensor, other: Tensor, share: float, least: Tensor) -> Tensor:
    """Which rows of logits ``(n, K)`` differ by more than a share of their spread, ``(n,)`` bool.

    The same infinities, or NaN on both sides, do not differ.

    Args:
        own: the model's.
        other: the copy's.
        share: of the spread.
        least: difference that is rounding, whatever the spread.
    """
    own, other = own.double(), other.double()
    slack = share * spread_of(own) + least + 1e-5 * own.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax(1)
    alike = ((own - other).abs() <= slack[:, None]) | (own == other) | (own.isnan() & other.isnan())
    return ~alike.all(1)


def _same_scores(own: Output | Tensor, other: Output | Tensor) -> bool:
    """Whether detectors' scores agree."""
    if isinstance(own, Tensor) or isinstance(other, Tensor):
        return isinstance(own, Tensor) and isinstance(other, Tensor)
    near = ((own.scores[name][:TRIED] - score).abs() <= AGREEMENT * score.abs() for name, score in other.scores.items())
    return own.scores.keys() == other.scores.keys() and all(bool(each.all()) for each in near)


def _open(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its parts, each once, but for those that run as a whole."""
    known: set[nn.Module] = set()
    todo = [module]
    while todo:
        part = todo.pop()
        if part not in known and not runs_as_a_whole(part):
            known.add(part)
            yield part
            todo += [child for child in part._modules.values() if child is not None]


def runs_as_a_whole(module: nn.Module) -> bool:
    """Whether the module's pass is not made of its parts' passes: a script, a traced graph, a compiled module."""
    own = vars(module)
    compiled = "forward" in own or own.get("_compiled_call_impl") is not None
    return compiled or isinstance(module, torch.jit.ScriptModule | fx.GraphModule)


def _fold(model: nn.Module, pairs: Pairs, stems: list[nn.Module]) -> nn.Module | None:
    swaps: dict[nn.Module, nn.Module] = {}
    for norm, (convolution, width) in pairs.items():
        last = suits_channels_last(convolution.weight.device, width)
        swaps[convolution], swaps[norm] = _fused(convolution, norm, channels_last=last), _rest(norm)
    swaps |= {stem: Stem(cast(nn.Conv2d, swaps.get(stem, stem))) for stem in stems}
    return _rebuilt(model, swaps, {}) if swaps else None


class Stem(nn.Module):
    """A convolution of images whose gradient to the image is cheaper on CPUs: an eighth of a ResNet-18's pass.

    A convolution of stride s is one of stride 1 on the image's s x s blocks, whose pixels are channels (Shi et al.
    2016). CPU libraries differentiate that in half the time, since more than three channels come out.

    Args:
        convolution: one that ``Stem.suits``.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.size, self.stride, padding = convolution.kernel_size[0], convolution.stride[0], int(convolution.padding[0])
        self.padding, self.front = padding, padding + -padding % self.stride  # whole blocks in front of the image
        before = self.front - padding
        behind = -(self.size + before) % self.stride
        blocks = F.pixel_unshuffle(F.pad(convolution.weight.detach(), (before, behind) * 2), self.stride)
        self.register_buffer("weight", blocks.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach(), persistent=False)

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Whether this is a plain convolution of an image with a square stride, and kernel of 4 or more."""
        return (
            type(module) is nn.Conv2d
            and module.in_channels <= 4
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and set(module.dilation) == {1}
            and 1 < module.stride[0] == module.stride[1]
            and module.padding[0] == module.padding[1]
            and 4 <= module.kernel_size[0] == module.kernel_size[1]
        )

    def forward(self, image: Tensor) -> Tensor:
        """What the convolution answers to ``(B, C, H, W)``."""
        ends = []
        for side in image.shape[:1:-1]:
            answers = (side + 2 * self.padding - self.size) // self.stride + 1
            needed = (answers - 1 + self.weight.shape[-1]) * self.stride
            ends += [self.front, needed - self.front - side]
        return F.conv2d(F.pixel_unshuffle(F.pad(image, ends), self.stride), self.weight, self.bias)


@contextmanager
def _convolutions_before_norms(modules: list[nn.Module]) -> Iterator[Pairs]:
    """Batch norms whose input is exactly what a convolution gave, each used once in the pass that is made inside."""
    found: Pairs = {}
    gave: dict[int, tuple[nn.Conv2d, int]] = {}  # with the version, which a change in place raises
    pairs: Pairs = {}
    calls: dict[nn.Module, int] = {}
    outputs: list[Tensor] = []  # kept alive, so that no identity is given twice

    def after(module: nn.Module, inputs: object, output: object) -> None:
        if module in foldable and isinstance(output, Tensor) and not output.is_inference():
            calls[module] = calls.get(module, 0) + 1
            outputs.append(output)
            gave[id(output)] = cast(nn.Conv2d, module), output._version
        if len(module._forward_hooks) > 1:  # another hook, perhaps of a block that ends in a convolution
            gave.pop(id(output), None)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        norm, given = cast(nn.BatchNorm2d, module), inputs[0] if inputs else None
        convolution, version = gave.get(id(given), (None, 0))
        if convolution is not None and isinstance(given, Tensor) and given._version == version:
            pairs[norm] = convolution, given.shape[-1]

    foldable, absorbable = ({module for module in modules if may(module)} for may in (_foldable, _absorbable))
    hooks = [module.register_forward_hook(after) for module in modules]
    hooks += [module.register_forward_pre_hook(before_norm) for module in absorbable]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    once = {norm: pair for norm, pair in pairs.items() if calls[norm] == calls[pair[0]] == 1}
    taken = [convolution for convolution, _ in once.values()]
    found |= {norm: pair for norm, pair in once.items() if taken.count(pair[0]) == 1}


def _without_hooks(module: nn.Module) -> bool:
    """Whether no hook reads the module's passes or changes it before, as the older ``weight_norm`` does."""
    listening = (hook for hooks in HOOKS for hook in getattr(module, hooks).values())
    return all(isinstance(hook, Thinned) for hook in listening)


def _foldable(module: nn.Module) -> bool:
    """Whether a batch norm may be folded into this."""
    return isinstance(module, nn.Conv2d) and "weight" in module._parameters and _without_hooks(module)


def _absorbable(module: nn.Module) -> bool:
    """Whether this may be folded into a convolution."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or not _without_hooks(module):
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
    copy.__dict__ = module.__dict__ | {"_modules": dict(module._modules)}
    return copy


def _rebuilt(module: nn.Module, swaps: dict[nn.Module, nn.Module], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """A structural copy with some modules exchanged; what occurs twice stays one module."""
    if runs_as_a_whole(module):
        return module
    if module not in done:
        copy = done[module] = swaps.get(module) or _shallow(module)
        if module not in swaps:
            copy._modules = {name: part and _rebuilt(part, swaps, done) for name, part in module._modules.items()}
    return done[module]
