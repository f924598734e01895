"""timm networks as feature maps, and where their weights come from."""

import os

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from robustfg.core.errors import UserError
from robustfg.losses import Softmax
from robustfg.models import Backbone, PublishedBackbone

SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
CASES = [  # name, options, image size, channels, side of the map
    ("test_resnet", {}, 160, 96, 5),
    ("resnet18", {"channels": (4, 8, 8, 16), "layers": (1, 1, 1, 1)}, 160, 16, 5),
    ("test_convnext", {}, 160, 64, 5),
    ("test_vit", {}, 160, 64, 10),
    ("test_vit4", {}, 160, 96, 10),
    ("vit_tiny_patch16_224", {"depth": 1}, 224, 192, 14),
    ("deit_tiny_distilled_patch16_224", {"depth": 1}, 224, 192, 14),
    ("vit_small_patch14_reg4_dinov2", {"depth": 1}, 140, 384, 10),
    ("swin_tiny_patch4_window7_224", SWIN, 224, 96, 7),
    ("test_mambaout", {}, 160, 64, 5),
]
NAMES = [case[0] for case in CASES]


def images(size, batch=2):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised(image, network):
    """By hand, per channel, from the numbers that timm publishes."""
    config = network.pretrained_cfg
    channels = [(image[:, c] - config["mean"][c]) / config["std"][c] for c in range(3)]
    return torch.stack(channels, 1)


def stored(path, network):
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


def trained(name, **options):
    """A network whose every weight differs from a fresh one's, as training leaves it."""
    torch.manual_seed(7)
    network = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return network


@pytest.mark.parametrize(("name", "options", "size", "channels", "side"), CASES, ids=NAMES)
def test_every_family_gives_the_map_it_announces(name, options, size, channels, side):
    backbone = Backbone(name=name, image_size=size, options=options)
    assert (backbone.channels, list(backbone.map_size)) == (channels, [side, side])
    with torch.no_grad():
        assert backbone(images(size)).shape == (2, channels, side, side)


@pytest.mark.parametrize(("name", "options", "size", "channels", "side"), CASES, ids=NAMES)
def test_every_feature_lands_at_its_place_in_the_map(name, options, size, channels, side):
    backbone = Backbone(name=name, image_size=size, options=options).eval()
    image = images(size)
    with torch.no_grad():
        expected = backbone.network.forward_intermediates(
            normalised(image, backbone.network), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
        assert torch.allclose(backbone(image), expected, atol=1e-4)


def test_a_disturbed_patch_disturbs_its_own_token_most():
    backbone = Backbone(name="test_vit", image_size=160).eval()
    image = images(160, 1)
    changed = image.clone()
    changed[:, :, 32:48, 112:128] = 1 - changed[:, :, 32:48, 112:128]
    with torch.no_grad():
        difference = (backbone(changed) - backbone(image)).norm(dim=1).flatten()
    assert divmod(difference.argmax().item(), 10) == (2, 7)


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "test_vit"])
def test_normalisation_is_the_one_the_weights_were_trained_with(name):
    backbone = Backbone(name=name, image_size=160)
    image = images(160)
    assert torch.allclose(backbone.normalise(image), normalised(image, backbone.network), atol=1e-6)


def test_a_checkpoint_keeps_the_normalisation_it_was_trained_with():
    stored = Backbone(name="test_resnet", image_size=64).state_dict()
    assert {name for name in stored if "network" not in name} == {"mean", "std"}


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_images_outside_the_unit_range_are_refused(value):
    backbone = Backbone(name="test_resnet", image_size=64)
    image = images(64)
    image[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        backbone(image)


def test_images_on_the_edge_of_the_unit_range_are_accepted():
    backbone = Backbone(name="test_resnet", image_size=64).eval()
    assert backbone(torch.zeros(1, 3, 64, 64)).isfinite().all()
    assert backbone(torch.ones(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("size", [24, 28, 32, 48, 64, 96])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "vit_tiny_patch16_224"])
def test_small_images_keep_a_map_of_four_by_four_and_train(name, size):
    options = {"depth": 1} if name.startswith("vit") else {}
    backbone = Backbone(name=name, image_size=size, options=options)
    assert min(backbone.map_size) >= 4
    assert backbone.training
    before = [value.detach().clone() for value in backbone.parameters()]
    optimiser = torch.optim.SGD(backbone.parameters(), lr=1.0)
    backbone(images(size, 4)).square().mean().backward()
    optimiser.step()
    after = list(backbone.parameters())
    assert all(value.isfinite().all() for value in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_small_images_may_be_left_to_the_network_as_it_is():
    assert list(Backbone(name="test_resnet", image_size=64, smallest_map=1).map_size) == [2, 2]


def test_enlarging_gives_the_network_the_size_it_asks_for():
    backbone = Backbone(name="test_resnet", image_size=32, resize=160).eval()
    assert list(backbone.map_size) == [5, 5]
    image = images(32)
    enlarged = F.interpolate(image, size=(160, 160), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.equal(backbone.normalise(image), backbone.normalise(enlarged))
        expected = backbone.network.forward_features(normalised(enlarged, backbone.network))
        assert torch.allclose(backbone(image), expected, atol=1e-5)


def test_enlarging_passes_gradients_back_to_the_given_pixels():
    torch.manual_seed(0)
    backbone = Backbone(name="test_convnext", image_size=32, resize=64).eval().double()  # smooth throughout
    image = images(32, 1).double().requires_grad_()
    direction = torch.randn(image.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(backbone(image).sum(), image)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = (backbone((image + step).requires_grad_()) - backbone((image - step).requires_grad_())).sum() / 2e-6
    assert gradient.shape == image.shape
    assert torch.isclose((gradient * direction).sum(), slope, rtol=1e-4)


@pytest.mark.parametrize("size", [28, 20])
def test_an_image_the_network_cannot_take_is_told_with_its_remedy(size):
    with pytest.raises(UserError, match=r"model\.name=test_maxvit cannot take .*model\.resize"):
        Backbone(name="test_maxvit", image_size=size)


def test_measuring_leaves_no_trace_in_batch_norm():
    network = Backbone(name="test_resnet", image_size=64).network
    assert all(value == 0 for name, value in network.named_buffers() if name.endswith("num_batches_tracked"))
    assert network.training


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_local_weights_are_loaded_exactly(tmp_path, name, suffix):
    network = trained(name)
    backbone = Backbone(name=name, image_size=160, weights=stored(tmp_path / f"w{suffix}", network))
    expected = network.state_dict()
    loaded = backbone.network.state_dict()
    heads = {f"{head}.{part}" for head in ("fc", "head", "head.fc", "head.norm") for part in ("weight", "bias")}
    assert set(expected) - set(loaded) <= heads
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, expected[key]), key


def test_local_weights_of_a_vit_are_fitted_to_another_image_size(tmp_path):
    network = trained("test_vit")
    backbone = Backbone(name="test_vit", image_size=192, weights=stored(tmp_path / "w.safetensors", network))
    assert list(backbone.map_size) == [12, 12]
    loaded = backbone.network.state_dict()
    assert loaded["pos_embed"].shape[1] > network.state_dict()["pos_embed"].shape[1]
    for key in loaded.keys() - {"pos_embed"}:
        assert torch.equal(loaded[key], network.state_dict()[key]), key


def test_local_weights_fit_a_network_with_lowered_strides(tmp_path):
    network = trained("test_resnet")
    backbone = Backbone(name="test_resnet", image_size=32, weights=stored(tmp_path / "w.pth", network))
    assert list(backbone.map_size) == [4, 4]
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[key]), key


def test_loading_weights_leaves_the_random_numbers_alone(tmp_path):
    path = stored(tmp_path / "w.safetensors", trained("test_resnet"))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Backbone(name="test_resnet", image_size=160, weights=path)
    assert torch.equal(torch.rand(4), expected)


def refused(path, name="test_resnet"):
    with pytest.raises(UserError) as error:
        Backbone(name=name, image_size=160, weights=str(path))
    assert f"model.weights={path}" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("other", ["test_convnext", "test_vit", "resnet10t"])
def test_weights_of_another_network_are_refused(tmp_path, other):
    assert "test_resnet" in refused(stored(tmp_path / "w.safetensors", trained(other)))


@pytest.mark.parametrize("lacking", ["layer4.0.conv1.weight", "layer1.0.bn1.running_mean", "layer2.0.bn1.weight"])
def test_weights_that_lack_a_tensor_are_refused_by_its_name(tmp_path, lacking):
    network = trained("test_resnet")
    state = network.state_dict()
    del state[lacking]
    torch.save(state, tmp_path / "w.pth")
    assert f"lacks tensors of test_resnet: {lacking};" in refused(tmp_path / "w.pth")


def test_weights_without_batch_norm_statistics_are_refused(tmp_path):
    state = {key: value for key, value in trained("test_resnet").state_dict().items() if "running_" not in key}
    torch.save(state, tmp_path / "w.pth")
    assert "running_mean" in refused(tmp_path / "w.pth")


def test_weights_without_counts_of_batches_and_without_classifier_are_enough(tmp_path):
    network = trained("test_resnet")
    state = {key: v for key, v in network.state_dict().items() if "num_batches" not in key and not key.startswith("fc")}
    torch.save(state, tmp_path / "w.pth")
    backbone = Backbone(name="test_resnet", image_size=160, weights=str(tmp_path / "w.pth"))
    assert torch.equal(backbone.network.conv1[0].weight, network.conv1[0].weight)


def test_weights_under_foreign_names_are_refused(tmp_path):
    state = {f"backbone.body.{name}": value for name, value in trained("test_resnet").state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth")


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "gone.safetensors")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"onnx")
    assert ".safetensors or .pth" in refused(tmp_path / "w.onnx")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"w{suffix}"
    stored(path, trained("test_resnet"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"state_dict": Malicious(str(tmp_path / "ran"))}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(UserError, match=r"model\.name=resnet19 is no timm model.*resnet18"):
        Backbone(name="resnet19", image_size=64)


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag_is_answered_with_the_known_ones(pretrained):
    with pytest.raises(UserError, match=r"model\.name=resnet18\.in23k.*resnet18\.a1_in1k"):
        Backbone(name="resnet18.in23k", image_size=64, pretrained=pretrained)


def test_a_name_with_a_tag_is_accepted():
    assert Backbone(name="test_vit.r160_in1k", image_size=160).channels == 64


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_misspelt_option_is_refused(name):
    with pytest.raises(UserError, match=rf"model\.options do not fit {name}.*dropp_rate"):
        Backbone(name=name, image_size=160, options={"dropp_rate": 0.1})


def test_options_reach_the_network():
    assert len(Backbone(name="test_vit", image_size=160, options={"depth": 2}).network.blocks) == 2


def test_weights_that_cannot_be_downloaded_are_told_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        Backbone(name="test_resnet", image_size=160, pretrained=True)
    source = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    for text in ("model.pretrained=true", "test_resnet", source, "model.weights="):
        assert text in str(error.value)


PUBLISHED = ["test_resnet", "test_convnext", "test_vit", "test_vit4", "test_efficientnet", "test_mambaout"]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("num_classes", [1000, 7])
def test_a_finished_classifier_gives_the_logits_of_plain_timm(tmp_path, name, num_classes):
    network = trained(name, num_classes=num_classes)
    backbone = PublishedBackbone(
        name=name, image_size=160, num_classes=num_classes, weights=stored(tmp_path / "w.safetensors", network)
    ).eval()
    head = Softmax.around(backbone.head).eval()
    image = images(160)
    with torch.no_grad():
        expected = network(normalised(image, network))
        features = backbone(image)
        output = head(features)
    assert features.shape == (2, backbone.channels, 1, 1)
    assert output.logits.shape == (2, num_classes)
    assert torch.allclose(output.logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.embedding, features.flatten(1))


def test_a_swin_gives_the_logits_of_plain_timm(tmp_path):
    network = trained("swin_tiny_patch4_window7_224")
    path = stored(tmp_path / "w.safetensors", network)
    backbone = PublishedBackbone(
        name="swin_tiny_patch4_window7_224", image_size=224, num_classes=1000, weights=path
    ).eval()
    image = images(224, 1)
    with torch.no_grad():
        logits = Softmax.around(backbone.head)(backbone(image)).logits
        assert torch.allclose(logits, network(normalised(image, network)), atol=1e-4, rtol=1e-4)


def test_a_finished_classifier_of_other_classes_is_refused(tmp_path):
    path = stored(tmp_path / "w.safetensors", trained("test_resnet"))
    with pytest.raises(UserError, match="test_resnet"):
        PublishedBackbone(name="test_resnet", image_size=160, num_classes=200, weights=path)
    with pytest.raises(UserError, match="1000 classes, but data has 200"):
        PublishedBackbone(name="test_resnet", image_size=160, num_classes=200)


def test_a_finished_classifier_without_one_linear_layer_is_refused():
    with pytest.raises(UserError, match="does not end in a linear layer"):
        PublishedBackbone(name="dla46_c", image_size=64, num_classes=1000)
