"""Lowered strides on small images."""

import pytest
import timm
import torch
from torch import nn

from robustfg.models.stride import keep_map_large


def small_resnet(**options):
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=0, channels=(4, 8, 8, 16), **options)


def strides(network):
    return {
        name: max(layer.stride) if isinstance(layer.stride, tuple) else layer.stride
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    }


def map_size(network, size):
    with torch.no_grad():
        return tuple(network.eval().forward_features(torch.zeros(1, 3, size, size)).shape[2:])


def test_a_resnet_at_32_pixels_becomes_the_cifar_variant():
    network = small_resnet()
    before = strides(network)
    keep_map_large(network, 32, 4)
    assert map_size(network, 32) == (4, 4)
    changed = {name for name, stride in strides(network).items() if stride != before[name]}
    assert changed == {"conv1", "maxpool"}
    assert strides(network)["conv1"] == strides(network)["maxpool"] == 1


@pytest.mark.parametrize("downsample", [{}, {"avg_down": True}])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_residual_branch_and_its_shortcut_stay_alike(size, downsample):
    network = small_resnet(**downsample)
    keep_map_large(network, size, 4)
    for stage in (network.layer2, network.layer3, network.layer4):
        branch = strides(stage[0].conv1)[""] * strides(stage[0].conv2)[""]
        shortcut = max(strides(stage[0].downsample).values())
        assert branch == shortcut
    assert min(map_size(network, size)) >= 4


@pytest.mark.parametrize("size", [64, 128])
def test_only_as_many_strides_are_lowered_as_needed(size):
    network = small_resnet()
    keep_map_large(network, size, 4)
    assert map_size(network, size) == (4, 4)
    assert sum(stride > 1 for stride in strides(network).values()) >= (7 if size == 64 else 8)


def test_a_map_that_is_large_enough_changes_nothing():
    network = small_resnet()
    before = strides(network)
    keep_map_large(network, 128, 4)
    assert strides(network) == before


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.Conv2d(3, 4, 3, stride=(4, 4))])
def test_a_stride_of_four_is_halved_not_dropped(layer):
    network = Features(layer)
    keep_map_large(network, 16, 5)
    assert layer.stride == (2, 2)


def test_weights_mode_and_hooks_are_left_alone():
    network = small_resnet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep_map_large(network, 32, 4)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in network.modules())


class Features(nn.Module):
    """``forward_features`` of some layers, as timm's networks have it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class Picky(nn.Module):
    def forward(self, x):
        if x.shape[-1] != 8:
            raise RuntimeError("only 8")
        return x


def test_a_network_that_cannot_run_with_lower_strides_is_left_as_it_was():
    network = Features(nn.Conv2d(3, 4, 3, stride=2, padding=1), Picky(), nn.MaxPool2d(4))
    before = strides(network)
    keep_map_large(network, 16, 4)
    assert strides(network) == before
    assert map_size(network, 16) == (2, 2)
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_an_image_too_small_for_the_network_as_it_is_gets_lower_strides():
    network = Features(*(nn.MaxPool2d(2) for _ in range(5)))
    with pytest.raises(RuntimeError):
        map_size(network, 28)  # 28, 14, 7, 3, 1, 0
    keep_map_large(network, 28, 4)
    assert min(map_size(network, 28)) >= 4


def test_a_map_with_channels_last_is_measured_by_its_sides():
    network = timm.create_model("test_mambaout", num_classes=0)
    with torch.no_grad():
        network.eval()
        assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape[1:3] == (1, 1)
        keep_map_large(network, 32, 4)
        assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape[1:3] == (4, 4)


def test_pools_whose_windows_tile_go_on_tiling():
    network = Features(nn.AvgPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2))
    keep_map_large(network, 16, 4)
    assert map_size(network, 16) == (4, 4)
    assert [layer.kernel_size for layer in network.layers] == [(1, 1), (1, 1), 3, 2]


def test_a_network_without_strides_ends():
    network = Features(nn.Conv2d(3, 4, 3))
    keep_map_large(network, 4, 4)
    assert map_size(network, 4) == (2, 2)
