"""Whether a detector's score can be attacked by its gradient; recorded on the samples that check the evaluation."""

import torch
from torch import Tensor

from robustfg.attacks.batch.input_gradient import gradient_of
from robustfg.attacks.detector_aware.differentiability import detector_graph
from robustfg.attacks.runtime.eval_mode import attackable
from robustfg.core.types import Batch
from robustfg.detectors import Watched
from robustfg.evaluation.checks.probes import PREFIX

GRADIENT, DIFFERENCE = PREFIX + "detector_gradient/", PREFIX + "detector_difference/"
"""With the detector's name behind: names of the recorded probes."""


def slopes(watched: Watched, detector: str, batch: Batch, step: float = 0.01) -> tuple[Tensor, Tensor]:
    """Whether the score has a gradient with respect to the image, and whether it tells how the score changes.

    Args:
        watched: what is attacked.
        detector: whose score.
        batch: the samples; they are drawn towards grey a little so that the step stays in the box.
        step: l2 length of the step along the gradient of the central difference, which must agree within a factor 2.

    Returns:
        Two ``(B,)`` bool.
    """
    alive = detector_graph(watched, batch.image, [detector])[detector]
    if not bool(alive.any()):
        return alive, alive
    with attackable(watched):
        image = (0.02 + 0.96 * batch.image.clone()).requires_grad_()
        gradient = gradient_of(watched(image).scores[detector].sum(), image)
    length = gradient.flatten(1).norm(dim=1)
    move = (step * gradient / length.clamp_min(1e-30).view(-1, 1, 1, 1)).nan_to_num()
    with torch.no_grad():
        ahead, behind = (
            watched((image.detach() + sign * move).clamp(0, 1)).scores[detector].double() for sign in (1, -1)
        )
    ratio = (ahead - behind) / (2 * step * length)
    return alive, alive & (ratio > 0.5) & (ratio < 2)
