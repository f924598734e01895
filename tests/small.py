"""Small models in float64 whose smallest perturbations are known or easily searched again."""

from collections import Counter

import torch
from torch import nn

INDEX = torch.tensor([7, 3, 12, 0, 99, 41])


def images(count=6, channels=3, size=4, seed=0, low=0.3, high=0.7):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64)


class Linear(nn.Module):
    """Two logits, +s/2 and -s/2, with s = w.(x - 1/2) + bias: the margin of class 0 is s."""

    def __init__(self, channels=3, size=4, bias=4.0, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(channels, size, size, generator=generator, dtype=torch.float64))
        self.bias = bias

    def score(self, image):
        return ((image - 0.5) * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, image):
        return torch.stack([self.score(image), -self.score(image)], 1) / 2


class Net(nn.Sequential):
    """A small smooth convolutional net that predicts all of its five classes."""

    def __init__(self, channels=3):
        torch.manual_seed(1)
        conv = nn.Conv2d(channels, 8, 3, padding=1)
        super().__init__(conv, nn.Softplus(beta=5), nn.Flatten(), nn.Linear(8 * 16, 5))
        self.double()
        self[3].weight.data *= 10
        self[3].bias.data -= self(images(64, channels, low=0.0, high=1.0)).detach().mean(0)


class Log(nn.Module):
    """Counts passes per sample: the pixel value [0, 0, 0] is moved by nothing, so that it can name the sample."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forwards, self.backwards = model, Counter(), Counter()

    def forward(self, image):
        names = [round(value) for value in (image[:, 0, 0, 0] * 100).tolist()]
        logits = self.model(image * torch.ones_like(image[0]).index_fill(2, torch.tensor(0), 0))
        self.forwards.update(names)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backwards.update(names))
        return logits


def named(clean):
    clean = clean.clone()
    clean[:, 0, 0, 0] = torch.arange(len(clean)) / 100
    return clean


def margin(model, image, label):
    """True logit minus the largest other one, of one sample ``(1, C, H, W)``, differentiable."""
    logits = model(image)[0]
    return logits[label] - torch.stack([value for place, value in enumerate(logits) if place != label]).max()
