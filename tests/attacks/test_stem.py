import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustfg.attacks.runtime.folding import Stem, folded

pytestmark = pytest.mark.numeric


def gradient(module, image, towards):
    leaf = image.clone().requires_grad_()
    (found,) = torch.autograd.grad((module(leaf) * towards).sum(), leaf)
    return found


@given(
    kernel=st.integers(4, 9),
    stride=st.integers(2, 6),
    padding=st.integers(0, 4),
    height=st.integers(9, 21),
    width=st.integers(9, 21),
    bias=st.booleans(),
)
def test_answers_and_gradient_are_those_of_the_convolution(kernel, stride, padding, height, width, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, kernel, stride, padding, bias=bias).double()
    image = torch.rand(2, 3, height, width, dtype=torch.float64)
    stem, answer = Stem(convolution), convolution(image)
    torch.testing.assert_close(stem(image), answer, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(answer)
    expected = gradient(convolution, image, towards)
    torch.testing.assert_close(gradient(stem, image, towards), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(3, 8, 7, 1, 3),
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(16, 8, 7, 2, 3),
        nn.Conv2d(3, 8, 7, 2, 3, dilation=2),
        nn.Conv2d(3, 9, 7, 2, 3, groups=3),
        nn.Conv2d(3, 8, 7, 2, 3, padding_mode="reflect"),
        nn.Conv2d(3, 8, (7, 5), 2, 2),
        nn.Conv2d(3, 8, 7, (2, 3), 3),
        nn.Linear(3, 8),
    ],
)
def test_other_layers_are_left_alone(other):
    assert not Stem.suits(other)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_a_networks_private_copy_has_the_stem_and_the_same_gradient(name):
    torch.manual_seed(0)
    options = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **options).eval().requires_grad_(False)
    image = torch.rand(4, 3, 32, 32)
    _, copy = folded(model, image)
    assert any(isinstance(module, Stem) for module in copy.modules())
    assert not any(isinstance(module, Stem) for module in model.modules())
    towards = torch.randn(4, 5)
    expected = gradient(model, image, towards)
    torch.testing.assert_close(gradient(copy, image, towards), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_half_precision_answers_have_a_gradient_in_the_images_precision():
    torch.manual_seed(0)
    stem, image = Stem(nn.Conv2d(3, 8, 7, 2, 3)), torch.rand(2, 3, 16, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        answer = stem(image)
    (found,) = torch.autograd.grad(answer.float().sum(), image)
    (expected,) = torch.autograd.grad(stem(image).sum(), image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
