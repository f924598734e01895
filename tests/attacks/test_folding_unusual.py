"""Models that are put together in unusual ways: attacked as they are, folded where that is right."""

import pytest
import torch
from test_folding import Plain, images, norms, settled
from torch import nn

from robustfg.attacks import PGD, Engine
from robustfg.attacks.runtime.folding import folded

pytestmark = pytest.mark.numeric


class Reparametrised(Plain):
    def __init__(self, normalise):
        super().__init__()
        self[3] = normalise(self[3])


class ByKeyword(Plain):
    def forward(self, image):
        first, norm, *others = self
        feature = norm(input=first(input=image))
        for module in others:
            feature = module(feature)
        return feature


class PartialConv(nn.Conv2d):
    def forward(self, image, mask=None):
        return super().forward(image)


class WithMask(Plain):
    """A narrow convolution that is called with more than an image."""

    def __init__(self):
        super().__init__()
        self[3] = PartialConv(8, 8, 3, 4, 1, bias=False)

    def forward(self, image):
        for module in self:
            image = module(image, None) if isinstance(module, PartialConv) else module(image)
        return image


class Scripted(Plain):
    def __init__(self):
        super().__init__()
        self.append(torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))))


class Listening(nn.Module):
    """The classifier reads what a hook on one of the modules has heard."""

    def __init__(self, place, first=None):
        super().__init__()
        self.body, self.heard = Plain(), []
        self.body[0] = first or self.body[0]
        self.body[place].register_forward_hook(lambda module, inputs, output: self.heard.append(output))
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        self.body(image)
        return self.head(self.heard.pop().mean((2, 3)))


class InPlace(Plain):
    """The first batch norm reads what an activation has written over the convolution's output."""

    def __init__(self):
        super().__init__()
        self[1], self[2] = nn.ReLU(inplace=True), self[1]


MAKE = {
    "weight norm": lambda: Reparametrised(torch.nn.utils.weight_norm),
    "spectral norm": lambda: Reparametrised(torch.nn.utils.spectral_norm),
    "parametrised weight norm": lambda: Reparametrised(torch.nn.utils.parametrizations.weight_norm),
    "parametrised spectral norm": lambda: Reparametrised(torch.nn.utils.parametrizations.spectral_norm),
    "by keyword": ByKeyword,
    "mask": WithMask,
    "scripted": Scripted,
    "listening to a norm": lambda: Listening(1),
    "listening to a convolution": lambda: Listening(0),
    "listening to a stem": lambda: Listening(0, nn.Conv2d(3, 8, 4, 2, 1)),
    "in place": InPlace,
}
LEFT = {"mask": 0, "scripted": 0}
"""Batch norms left in the copy; one where it is not told otherwise."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", MAKE)
def test_whatever_can_be_folded_is_and_the_rest_is_left(name):
    model, image = settled(MAKE[name]()), images()
    _, copy_ = folded(model, image)
    assert len(norms(copy_)) == LEFT.get(name, 1)
    assert torch.allclose(copy_(image), model(image), atol=1e-5)
    assert all(not any("layout" in str(hook) for hook in m._forward_pre_hooks.values()) for m in model.modules())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", MAKE)
def test_an_attack_finds_what_it_finds_without_a_copy(name):
    model, image = settled(MAKE[name]()), images()
    label = model(image).argmax(1)
    attack = PGD(epsilon="4/255", steps=3, random_start=False, last_iterate=True)
    found = attack(model, image, label)
    exact = type(attack)(**{**attack.__dict__, "engine": Engine(fold=False)})(model, image, label)
    assert (found != exact).float().mean() < 0.01  # signs of slopes that round to the other side of 0
