"""Networks and images that attacks are measured on."""

from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from robustfg.attacks import PGD, CrossEntropy

STANDING = 0.6
"""Share of images that withstand an attack, much as attacks meet it in practice."""


@dataclass(frozen=True)
class Subject:
    """A network in eval mode with images that it classifies as labelled, and a radius that breaks part of them."""

    name: str
    model: nn.Module
    image: Tensor
    label: Tensor
    epsilon: float


def small_cnn(classes: int = 10) -> nn.Module:
    """Three convolutions with batch norms: small enough that an attack's own overhead shows."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def resnet18(classes: int = 10) -> nn.Module:
    """Timm's ResNet-18."""
    network: nn.Module = timm.create_model("resnet18", num_classes=classes)
    return network


def subject(name: str, model: nn.Module, device: str, *, batch: int = 64, size: int = 64) -> Subject:
    """Random weights with settled batch norms; labels are the network's own predictions, centred over the classes.

    The radius is searched so that about ``STANDING`` of the images withstand the PGD-10 that is timed.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, size, size, generator=generator)
    image = (0.5 + 0.5 * (nn.functional.avg_pool2d(image, 5, 1, 2) - 0.5) * 4).clamp(0, 1).to(device)
    model = model.to(device).train()
    with torch.no_grad():
        for _ in range(20):
            model(image)
        model.eval()
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        last.bias -= model(image).mean(0)
        label = model(image).argmax(1)
    low, high = 0.0, 16 / 255
    tried: dict[float, float] = {}
    for _ in range(10):
        epsilon = (low + high) / 2
        attack = PGD(epsilon=epsilon, steps=10, step_size="eps/4", objective=CrossEntropy())
        (attempt,) = attack.attempts(model, image, label)
        tried[epsilon] = float((attempt.margin > 0).float().mean())
        low, high = (epsilon, high) if tried[epsilon] > STANDING else (low, epsilon)
    return Subject(name, model, image, label, min(tried, key=lambda epsilon: abs(tried[epsilon] - STANDING)))
