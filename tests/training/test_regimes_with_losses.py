"""One training step of every regime with every loss module, as the presets have them."""

import copy
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from robustfg.classifier import Classifier
from robustfg.cli.assemble import classifier_of
from robustfg.cli.config import CONF, build, plain, register_schemas
from robustfg.core.errors import UserError
from robustfg.core.types import Batch

register_schemas()
CLASSES = ("a", "b", "c", "d")
LOSSES = sorted({path.stem for path in (CONF / "loss").glob("*.yaml")} - {"stored"})  # stored is a checkpoint's own
PARTS = ["loss/covariance=full", "loss/priors=learned", "loss/initial_means=simplex"]
BELOW = {f"awp {name}": f"training@training.regime={name}" for name in ("fast", "free", "mart", "trades")}
REGIMES = sorted({path.stem for path in (CONF / "training").glob("*.yaml")} | set(BELOW))
BY_DISTANCE = {"mmc", "mmlda", *(name for name in LOSSES if name.split("_")[0] == "gm"), *PARTS}


@cache
def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("train", overrides=["run_name=r", *overrides]))


@cache
def regime_of(name):
    chosen = ["training=awp", BELOW[name]] if name in BELOW else [f"training={name}"]
    config = composed("loss=gm", *chosen)  # which every regime takes
    return classifier_of({**config, "training": quick(config["training"])}, CLASSES).regime


def quick(node):
    """With two steps for all attacks."""
    short = {"steps": 2} if isinstance(node.get("steps"), int) else {}
    return {key: quick(value) if isinstance(value, dict) else value for key, value in node.items()} | short


def loss_of(name):
    config = composed("loss=gm", name) if name in PARTS else composed(f"loss={name}")
    node = {key: value for key, value in config["loss"].items() if key != "phases"}
    if name == "maxsep_released":
        node["attention_epsilon"] = 1e-6  # of the release's 0, a map without a positive value is 0/0
    return build(node, "loss", channels=6, num_classes=len(CLASSES))


class Backbone(nn.Sequential):
    channels = 6

    def __init__(self):
        layers = [(nn.Conv2d(i, o, 3, 2, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in ((3, 8), (8, 6))]
        super().__init__(*(part for layer in layers for part in layer))


def classifier(loss, regime):
    torch.manual_seed(0)
    return Classifier(
        backbone=Backbone(), loss=loss_of(loss), num_classes=len(CLASSES), regime=copy.deepcopy(regime_of(regime))
    )


def flags(model):
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return trained, {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("loss", LOSSES + PARTS)
@pytest.mark.parametrize("regime", REGIMES)
def test_a_step_gives_finite_gradients_to_all_parameters_and_changes_no_flag(regime, loss):
    if regime == "mcat" and loss not in BY_DISTANCE:
        with pytest.raises(UserError, match="training=mcat needs a loss that decides by distance to its means"):
            classifier(loss, regime)
        return
    model = classifier(loss, regime).train()
    image = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    before = flags(model)
    terms = model.regime(model, model.loss, Batch(image, torch.arange(6) % len(CLASSES), torch.arange(6)), 0)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name  # DDP would wait for it
            assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.backbone.parameters())
    assert flags(model) == before
