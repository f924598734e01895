"""No backbone keeps a parameter that its feature map does not depend on."""

import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from robustfg.checkpoint import Checkpoint
from robustfg.classifier import Classifier
from robustfg.core.errors import UserError
from robustfg.models import Backbone, PublishedBackbone
from robustfg.training import Phase, Phases
from robustfg.training.callbacks import WarmedEma

sys.path.append(str(Path(__file__).parents[1] / "training"))
from small_classifiers import StoppedAt, data, trainer
from small_phases import Means
from toy import SIZE
from two_ranks import found_by_two


@pytest.mark.process
def test_every_family_and_every_loss_trains_on_two_ranks_that_wait_for_every_gradient(tmp_path):
    first, second = found_by_two("reached_ranks.py", tmp_path)
    assert {name: error for name, (_, error) in (first | second).items() if error} == {}
    assert [name for name, (weights, _) in first.items() if second[name][0] != weights] == []
    assert len(first) > 35


def test_parameters_that_nothing_depends_on_are_left_out():
    backbone = Backbone(name="test_convnext", image_size=64)
    assert backbone.unreached == ("network.head.norm.weight", "network.head.norm.bias")
    backbone(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert all(value.grad is not None for value in backbone.parameters())
    assert Backbone(name="test_resnet", image_size=64).unreached == ()


def test_older_checkpoints_that_hold_them_are_loaded():
    backbone = Backbone(name="test_convnext", image_size=64)
    older = backbone.state_dict() | {name: torch.zeros(64) for name in backbone.unreached}
    backbone.load_state_dict(older)
    with pytest.warns(UserWarning, match=r"checkpoint=old\.ckpt: .*head\.norm.* left out"):
        Checkpoint(Path("old.ckpt"), "checkpoint", {}, (), older).load_into(backbone)
    with pytest.raises(UserError, match="network.other unknown"):
        Checkpoint(Path("old.ckpt"), "checkpoint", {}, (), older | {"network.other": torch.zeros(1)}).load_into(
            backbone
        )


@pytest.mark.parametrize(
    "phases", [None, Phases((Phase(name="one", epochs=2, lr={"means": 0.1}),))], ids=["one", "groups"]
)
def test_a_run_whose_checkpoint_holds_them_is_continued_as_if_it_never_had(tmp_path, phases):
    """In earlier versions the optimizer counted them, and had state for those after them."""

    def trained(path, stop=None, kept=()):
        torch.manual_seed(0)
        backbone = Backbone(name="test_convnext", image_size=SIZE)
        for name in kept:
            owner, _, key = name.rpartition(".")
            backbone.get_submodule(owner).register_parameter(key, torch.nn.Parameter(torch.ones(64)))
        backbone.unreached = () if kept else backbone.unreached
        model = Classifier(
            backbone=backbone, loss=Means(channels=64, num_classes=5), num_classes=5, phases=phases,
            optimizer=partial(torch.optim.AdamW, lr=0.01),
        )  # fmt: skip
        loop = trainer(
            precision="32-true", limit_train_batches=2, callbacks=[StoppedAt(path, stop), WarmedEma(decay=0.9)]
        )
        with suppress(SIGTERMException):
            loop.fit(model, data(), ckpt_path=path if path.exists() else None, weights_only=True)
        return model.state_dict(), loop.global_step

    unused = Backbone(name="test_convnext", image_size=SIZE).unreached
    whole, _ = trained(tmp_path / "whole.ckpt")
    older, steps = trained(tmp_path / "older.ckpt", stop=2, kept=unused)
    assert steps == 2
    assert {f"backbone.{name}" for name in unused} == older.keys() - whole.keys()
    continued, steps = trained(tmp_path / "older.ckpt")
    assert steps == 4
    assert continued.keys() == whole.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, continued[name])] == []


def test_of_a_network_whose_features_are_class_tokens_alone_the_patches_are_taken():
    """Each position follows most what it shows, or a head that looks at positions would see none."""
    backbone = Backbone(name="pit_ti_distilled_224", image_size=64, options={"depth": [1, 1, 1]}).eval()
    assert (backbone.channels, backbone.map_size) == (256, [2, 2])
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[:, :, :20, :20] = 1 - image[:, :, :20, :20]
    with torch.no_grad():
        (patches,) = backbone.network.forward_intermediates(
            backbone.normalise(image), indices=1, intermediates_only=True
        )
        assert torch.allclose(backbone(image).permute(0, 2, 3, 1), backbone.network.norm(patches.permute(0, 2, 3, 1)))
        moved = (backbone(changed) - backbone(image)).square().sum(1)[0]
    assert moved.argmax() == 0
    assert PublishedBackbone(name="pit_ti_224", image_size=224, num_classes=1000).map_size == [1, 1]


@pytest.mark.parametrize("name", ["coat_tiny", "efficientvim_m1"])
def test_networks_without_a_single_map_are_refused_in_one_line(name):
    with pytest.raises(
        UserError, match=rf"model\.name={name} cannot be a backbone: its features.*another network"
    ) as e:
        Backbone(name=name, image_size=224)
    assert "\n" not in str(e.value)


def test_a_volo_gives_its_tokens_as_a_map_without_the_class_token():
    backbone = Backbone(name="volo_d1_224", image_size=64).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = backbone.network.forward_features(backbone.normalise(image))
        assert torch.allclose(backbone(image).flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-4)


def test_a_network_with_weights_of_five_dimensions_takes_any_layout():
    assert timm.is_model("lambda_resnet26t")
    for choice in ("auto", True, False):
        assert Backbone(name="lambda_resnet26t", image_size=64, channels_last=choice).channels == 2048


@pytest.mark.parametrize(
    "options", [{"channels": [4]}, {"layers": "x"}, {"act_layer": "none_such"}, {"norm_layer": 3}, {"img_sise": 3}]
)
def test_options_that_a_network_refuses_in_any_way_are_told_in_one_line(options):
    with pytest.raises(UserError, match=r"model\.(options do not fit|name=)") as error:
        Backbone(name="resnet18", image_size=64, options=options)
    assert "\n" not in str(error.value)
