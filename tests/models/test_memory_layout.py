"""Memory layouts, and the pointwise convolutions that crash a CPU without AVX-512 in one of them."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from robustfg.classifier import Classifier
from robustfg.core.errors import UserError
from robustfg.core.memory_layout import LEAST_CHANNELS, protect, thinned
from robustfg.losses import Softmax
from robustfg.models import Backbone

pytestmark = pytest.mark.numeric

LAST = torch.channels_last


def backbone_of(channels, size=32, **more):
    options = {"layers": [1, 1, 1, 1], "channels": channels}
    return Backbone(name="resnet18", image_size=size, options=options, **more)


def is_last(backbone):
    return backbone.network.layer1[0].conv2.weight.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("stride", [(2, 2), (3, 2), (1, 2)])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_protected_convolution_answers_and_learns_as_before(stride, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 1, stride).double()
    safe = copy.deepcopy(plain)
    protect(safe)
    assert thinned(safe)
    image, found = torch.rand(3, 4, size, size, dtype=torch.double), []
    for convolution in (plain, safe):
        leaf = image.clone().requires_grad_()
        answer = convolution(leaf)
        answer.square().sum().backward()
        found.append((answer.detach(), leaf.grad, convolution.weight.grad, convolution.bias.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize(
    ("convolution", "expected"),
    [
        (nn.Conv2d(LEAST_CHANNELS - 1, 8, 1, 2), True),
        (nn.Conv2d(3, 48, 1, 2), True),  # FastViT's first layer
        (nn.Conv2d(LEAST_CHANNELS, 8, 1, 2), False),
        (nn.Conv2d(4, 8, 1, 1), False),
        (nn.Conv2d(4, 8, 3, 2, 1), False),
        (nn.Conv2d(4, 4, 1, 2, groups=4), False),
    ],
)
def test_only_narrow_pointwise_convolutions_with_a_stride_are_protected_and_once(convolution, expected):
    network = nn.Sequential(convolution)
    for _ in range(2):
        protect(network)
    assert thinned(convolution) == expected
    assert len(convolution._forward_pre_hooks) == expected
    for twin in (copy.deepcopy(convolution), pickle.loads(pickle.dumps(convolution))):
        assert thinned(twin) == expected


def test_the_layout_is_that_of_the_widths_unless_it_is_given():
    assert is_last(backbone_of([16, 16, 16, 16]))
    assert not is_last(backbone_of([8, 8, 8, 8]))
    assert is_last(backbone_of([8, 8, 8, 8], channels_last=True))
    assert not is_last(backbone_of([16, 16, 16, 16], channels_last=False))


@pytest.mark.parametrize("choice", ["yes", None, 1, [], float("nan")])
def test_another_layout_is_refused(choice):
    with pytest.raises(UserError, match=r"model\.channels_last must be auto, true or false"):
        backbone_of([8, 8, 8, 8], channels_last=choice)


def test_a_network_of_the_users_own_is_protected_where_it_is_trained():
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, 2)).to(memory_format=LAST)
    Classifier(backbone=own, loss=Softmax(channels=4, num_classes=3), num_classes=3)
    assert thinned(own[1])


SCRIPT = """
import copy, torch
from robustfg.models import Backbone
torch.set_num_threads(1)
last = torch.channels_last
def train(backbone, images_last):
    for _ in range(10):
        image = torch.rand(8, 3, 32, 32)
        image = image.contiguous(memory_format=last) if images_last else image
        backbone.train()(image).square().mean().backward()
for channels, norm in ((4, 4, 4, 4), "batchnorm2d"), ((4, 8, 16, 32), "batchnorm2d"), ((4, 4, 4, 4), "layernorm2d"):
    for choice in ("auto", True, False):
        options = dict(layers=[1, 1, 1, 1], channels=channels, norm_layer=norm)
        backbone = Backbone(name="resnet18", image_size=32, options=options, channels_last=choice, smallest_map=1)
        train(copy.deepcopy(backbone), choice is False)
state = {k: v.to(memory_format=last) if v.dim() == 4 else v for k, v in backbone.state_dict().items()}
backbone.load_state_dict(state, assign=True)
train(backbone, False)
print("whole")
"""


@pytest.mark.process
def test_narrow_networks_train_in_every_layout_without_a_broken_heap():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ, capture_output=True, text=True)
    assert ended.stdout == "whole\n", ended.stderr[-2000:]
