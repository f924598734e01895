"""Fitting detectors: every process sees its share of the training split."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from robustfg.core.types import Batch
from robustfg.detectors.base import Detector
from robustfg.detectors.watched import Watched


def _alone(found: Any) -> list[Any]:
    return [found]


@torch.no_grad()
def fit(watched: Watched, batches: Iterable[Batch], gather: Callable[[Any], list[Any]] = _alone) -> None:
    """Lets all detectors learn from one pass over the training split.

    The classifier is put in eval mode meanwhile. Without a detector that learns, no batch is drawn.

    Args:
        watched: the classifier with its detectors.
        batches: this process's share, un-augmented, on the classifier's device.
        gather: gives the findings of all processes, in order of the ranks.
    """
    looks = [look for module in watched.detectors.values() if (look := cast(Detector, module).fit()) is not None]
    if not looks:
        return
    training = [module for module in watched.modules() if module.training]
    watched.eval()
    try:
        for batch in batches:
            output = watched.answer(batch.image)
            for look in looks:
                look.see(output, batch.label, batch.index)
    finally:
        for module in training:
            module.training = True
    for look in looks:
        look.conclude(gather(look.findings()))
