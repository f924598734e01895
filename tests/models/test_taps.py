from functools import partial

import pytest
import torch
from torch import nn
from toy import Convolutions

from robustfg.attacks.runtime.folding import folded
from robustfg.classifier import Classifier
from robustfg.core.errors import UserError
from robustfg.losses import Softmax
from robustfg.models import Backbone
from robustfg.models.taps import with_layers

SMALL = {
    "swin_tiny_patch4_window7_224": {"window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}


def image(count=3, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def heard(part, backbone, pictures):
    """What a part gives, by a hook of the test's own."""
    found = []
    handle = part.register_forward_hook(lambda module, inputs, answer: found.append(answer.clone()))
    backbone(pictures)
    handle.remove()
    return found[-1]


@pytest.mark.parametrize(
    ("name", "layers", "mean"),
    [
        ("resnet10t", ["layer1", "layer3.0.conv1"], lambda x: x.mean((2, 3))),
        ("test_vit", ["blocks.0", "blocks.1.mlp"], lambda x: x[:, 1:].mean(1)),
        ("test_vit", ["patch_embed"], lambda x: x.mean((1, 2))),
        ("swin_tiny_patch4_window7_224", ["layers.0", "layers.1.blocks.0"], lambda x: x.mean((1, 2))),
        ("convnext_atto", ["stages.1"], lambda x: x.mean((2, 3))),
        ("convnext_tiny", ["stages.1.blocks.0.mlp"], lambda x: x.mean((1, 2))),
    ],
)
def test_layers_are_means_over_positions_whatever_the_layout(name, layers, mean):
    torch.manual_seed(0)
    side = 64 if "convnext" in name else 32
    backbone = Backbone(name=name, image_size=side, options=SMALL.get(name)).eval()
    pictures = image(side=side)
    feature_map, found = with_layers(backbone, pictures, layers)
    assert torch.equal(feature_map, backbone(pictures))
    assert list(found) == layers
    for layer in layers:
        expected = mean(heard(backbone.network.get_submodule(layer), backbone, pictures))
        assert found[layer].shape == expected.shape
        assert torch.equal(found[layer], expected)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])
def test_the_private_copy_of_attacks_hears_what_the_model_hears(name):
    torch.manual_seed(0)
    backbone = Backbone(name=name, image_size=32)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    model = Classifier(backbone=backbone, loss=Softmax(channels=backbone.channels, num_classes=5), num_classes=5)
    model.double().eval()
    layers = [part for part, _ in backbone.network.named_modules() if part.endswith(("conv1", "bn1", "act1", "layer2"))]
    layers += [part for part, _ in backbone.network.named_modules() if part.endswith(("conv_stem", "bn2", "conv_pw"))]
    layers = [part for part in layers if part != "conv_head"]

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = model

        def forward(self, pictures):
            return self.classifier(pictures, layers)

    asking, pictures = Asking().eval(), image().double()
    _, copy = folded(asking, pictures)
    assert any(isinstance(part, nn.Identity | nn.Sequential) for part in copy.modules())
    pictures.requires_grad_()
    own, theirs = asking(pictures).layers, copy(pictures).layers
    assert set(own) == set(layers)
    for layer in layers:
        torch.testing.assert_close(theirs[layer], own[layer], rtol=1e-7, atol=1e-7)
    slopes = [torch.autograd.grad(sum(x.sin().sum() for x in found.values()), pictures)[0] for found in (own, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-6)


def test_nothing_is_left_behind_and_nothing_is_paid_by_who_does_not_ask(monkeypatch):
    backbone = Convolutions().eval()
    model = Classifier(backbone=backbone, loss=Softmax(channels=16, num_classes=5), num_classes=5).eval()
    with_them = model(image(), ["layers.0"])
    assert list(with_them.layers) == ["layers.0"]
    assert torch.equal(with_them.logits, model(image()).logits)
    with pytest.raises(UserError):
        model(image(), ["layers.0", "nope"])
    assert not any(module._forward_hooks for module in model.modules())
    monkeypatch.setattr("robustfg.classifier.with_layers", None)
    assert model(image()).layers == {}


def test_class_tokens_are_left_out_where_there_are_any():
    class Tokens(nn.Module):
        num_prefix_tokens = 1

        def __init__(self):
            super().__init__()
            self.bare, self.whole = nn.Identity(), nn.Identity()

        def forward(self, tokens):
            return self.whole(torch.cat([torch.full_like(tokens[:, :1], 99), self.bare(tokens)], 1))

    tokens = torch.rand(2, 9, 5)
    _, found = with_layers(Tokens(), tokens, ["bare", "whole"])
    torch.testing.assert_close(found["bare"], tokens.mean(1))
    torch.testing.assert_close(found["whole"], tokens.mean(1))


def test_gradients_pass_through_layers():
    backbone, pictures = Convolutions().eval(), image().requires_grad_()
    _, found = with_layers(backbone, pictures, ["layers.3"])
    (gradient,) = torch.autograd.grad(found["layers.3"].square().sum(), pictures)
    again = backbone.layers[:4]((pictures - 0.5) / 0.25).mean((2, 3)).square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(again, pictures)[0])


def test_what_follows_in_place_does_not_change_what_was_heard():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    _, found = with_layers(backbone, image(), ["0"])
    torch.testing.assert_close(found["0"], backbone[0](image()).mean((2, 3)))
    assert (found["0"] < 0).any()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", r"no layer 'layer9'; it has conv1, bn1, act1, maxpool, layer1, layer2, .* and their parts"),
        ("layer1.0.conf1", r"close inner ones: layer1\.0\.conv1"),
        ("", "no layer ''"),
        ("global_pool.pool", "does not run global_pool.pool"),
    ],
)
def test_wrong_names_are_told_with_the_known_ones(layer, message):
    backbone = Backbone(name="resnet10t", image_size=32).eval()
    with pytest.raises(UserError, match=message):
        with_layers(backbone, image(), [layer])


def test_compiled_models_answer_the_layers_of_this_batch():
    backbone = Convolutions().eval()
    compiled = torch.compile(partial(with_layers, backbone), backend="eager")
    for seed in range(3):
        pictures = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(compiled(pictures, ["layers.2"])[1]["layers.2"],
                           with_layers(backbone, pictures, ["layers.2"])[1]["layers.2"])  # fmt: skip
