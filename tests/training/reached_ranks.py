"""One of two gloo ranks: every backbone and every loss takes steps under plain DDP, which waits for every gradient."""

import torch
import torch.distributed as dist
from test_regimes_with_losses import LOSSES, Backbone, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import joined

from robustfg import models
from robustfg.losses import Softmax

FAMILIES = {  # the options of conf/model, by small relatives, and other families
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]},
    "resnet50": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "test_convnext": {}, "vgg11": {}, "test_efficientnet": {}, "test_vit": {}, "test_mambaout": {},
    "test_nfnet": {}, "test_byobnet": {}, "test_resnet": {}, "mobilenetv3_small_050": {}, "mobileone_s0": {},
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
}  # fmt: skip


class Step(nn.Module):
    def __init__(self, backbone, loss):
        super().__init__()
        self.backbone, self.loss = backbone, loss

    def forward(self, image, label):
        return self.loss.loss(self.loss(self.backbone(image)), label)["loss"]


def step(backbone, loss, size):
    """None, or what went wrong; in the second step DDP reports gradients that the first did not bring."""
    try:
        model = DistributedDataParallel(Step(backbone, loss).train(), find_unused_parameters=False)
        for _ in range(2):
            model(torch.rand(4, 3, size, size), torch.arange(4)).backward()
    except Exception as error:
        return str(error)[:300]
    return None


def backbone_of(name, options):
    size = 224 if "_224" in name else 64
    return models.Backbone(name=name, image_size=size, options=options), size


if __name__ == "__main__":
    rank, folder = joined()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    found = {}
    for name, options in FAMILIES.items():
        backbone, size = backbone_of(name, options)
        found[name] = step(backbone, Softmax(channels=backbone.channels, num_classes=4), size)
    for name in LOSSES:
        found[f"loss={name}"] = step(Backbone(), loss_of(name), 16)
    torch.save(found, folder / f"{rank}.pt")
