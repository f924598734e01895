"""Cross-entropy saturates on distance logits in float32; margins do not."""

import torch
from torch import nn

from robustfg.attacks import CrossEntropy, GradientAttack, Linf, Margin, ScaledCrossEntropy
from robustfg.losses import GaussianMixture

COUNT, CLASSES = 64, 4


class Scaled(nn.Module):
    """Linear features times ``scale`` of images 3 x 4 x 4, and a GM head whose means are the prototypes' features."""

    def __init__(self, scale):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, 16, generator=generator) / 7)
        self.prototypes = 0.3 + 0.4 * torch.rand(CLASSES, 3, 4, 4, generator=generator)
        self.scale, self.head = scale, GaussianMixture(channels=16, num_classes=CLASSES)
        with torch.no_grad():
            self.head.means.copy_(self.features(self.prototypes))

    def features(self, image):
        return self.scale * (image - 0.5).flatten(1) @ self.weight

    def forward(self, image):
        return self.head(self.features(image)[:, :, None, None])


def fooled(scale, objective):
    """How many of 64 samples projected gradient ascent fools from the clean image."""
    model, label = Scaled(scale).eval(), torch.arange(COUNT) % CLASSES
    generator = torch.Generator().manual_seed(1)
    clean = (model.prototypes[label] + 0.02 * torch.randn(COUNT, 3, 4, 4, generator=generator)).clamp(0, 1)
    assert (model(clean).logits.argmax(1) == label).all()
    attack = GradientAttack(threat=Linf(epsilon=0.25), steps=20, objective=objective)
    (attempt,) = attack.attempts(model, clean, label)
    return int((model(attempt.image).logits.argmax(1) != label).sum()), int(attempt.dead_gradient.sum())


def test_on_features_times_a_hundred_cross_entropy_finds_nothing_and_the_margin_everything():
    assert fooled(1.0, CrossEntropy()) == (COUNT, 0)
    assert fooled(100.0, CrossEntropy()) == (0, COUNT)
    assert fooled(100.0, Margin()) == (COUNT, 0)
    assert fooled(100.0, ScaledCrossEntropy()) == (COUNT, 0)
