"""Whether a detector's score can be differentiated at all: without that, a white-box attack on it proves nothing."""

from collections.abc import Iterable

from torch import Tensor

from robustfg.attacks.batch.input_gradient import gradient_of
from robustfg.attacks.objectives.acceptance import ScoreOf
from robustfg.attacks.runtime.eval_mode import Model, attackable


def detector_graph(model: Model, image: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Of every detector, for which images its score has a finite gradient that is not all zero, ``(B,)`` bool.

    One forward pass and a backward pass a detector. A mask that hides only a part of a score, or bends its gradient,
    passes this; what it cannot hide from is an attack that asks for no gradient and finds more.

    Args:
        model: classifier and detectors, images to an ``Output`` with scores.
        image: ``(B, C, H, W)``.
        names: the detectors.
    """
    with attackable(model):
        leaf = image.detach().clone().requires_grad_()
        output = model(leaf)
        found = {}
        for name in names:
            score = ScoreOf(name)(output)
            gradient = gradient_of(score.sum(), leaf, retain_graph=True).flatten(1)
            found[name] = (gradient != 0).any(1) & gradient.isfinite().all(1)
        return found
