"""Which classes a model takes for which."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustfg.core.precision import exact_arithmetic
from robustfg.data.datamodule import DataModule
from robustfg.evaluation.measure import Classify


def confusion_of(model: Classify, data: DataModule, device: torch.device) -> Tensor:
    """Mean softmax probability of every class (columns) over a true class's validation samples (rows), ``(K, K)``.

    Unlike counts it also ranks the classes that a sample was never taken for. Rows of classes without samples are 0.
    Every process reads the whole split, so that all get the same.

    Args:
        model: in eval mode.
        data: gives the clean samples.
        device: where the model lies.
    """
    classes = len(data.classes)
    mass, samples = torch.zeros(classes, classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.int64)
    for image, label, _ in DataLoader(data.samples("val"), data.eval_batch_size):
        with exact_arithmetic(), torch.no_grad():
            probability = model(image.to(device)).logits.double().softmax(1).cpu()
        mass.index_add_(0, label, probability)
        samples += label.bincount(minlength=classes)
    return mass / samples.clamp_min(1)[:, None]
