"""The released ACCV 2020 model of the golden file, rebuilt from our parts."""

from pathlib import Path

import numpy as np
import torch
from commands import config_of
from torch import nn

from robustfg.cli.config import build

GOLDEN = np.load(Path(__file__).parent.parent / "data" / "maxsep_official.npz")
MEAN = torch.tensor((0.485, 0.456, 0.406), dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225), dtype=torch.float64).view(3, 1, 1)
OURS = {
    "add_on_layers": "prototype.add_on",
    "prototype_vectors": "prototype.prototypes.vectors",
    "last_layer": "prototype.last_layer",
    "att_layer.class_agnostic_weights": "attention.agnostic",
    "att_layer.class_specific_weights": "attention.specific",
}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def released_loss(**changes):
    """The loss module with the released weights, in eval mode."""
    classes, per_class = int(GOLDEN["num_classes"]), int(GOLDEN["prototypes_per_class"])
    node = config_of("train", "loss=maxsep_released")["loss"]
    options = {key: value for key, value in node.items() if key != "phases"}
    options |= {"prototypes_per_class": per_class, "prototype_depth": 8} | changes
    module = build(options, "loss", channels=16, num_classes=classes).double().eval()
    for theirs, ours in named_parameters():
        parameter = module.get_parameter(ours)
        parameter.data = golden(f"state/{theirs}").view_as(parameter)
    return module


def named_parameters():
    """Names of the loss module's parameters, theirs and ours."""
    for key in GOLDEN.files:
        name = key.removeprefix("state/")
        for theirs, ours in OURS.items():
            if key.startswith("state/") and name.startswith(theirs):
                yield name, name.replace(theirs, ours)


def released_backbone():
    """The tiny VGG of the golden file, on normalised images."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
    ).double()  # fmt: skip
    layers.load_state_dict({key: golden(f"state/features.features.{key}") for key in layers.state_dict()})
    return layers


class Released(nn.Module):
    """Backbone and loss module on images in [0, 1]."""

    def __init__(self, **changes):
        super().__init__()
        self.backbone, self.loss = released_backbone(), released_loss(**changes)

    def forward(self, image):
        return self.loss(self.backbone((image - MEAN) / STD))
