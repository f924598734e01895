"""One of two gloo ranks: every backbone and every loss takes steps under plain DDP, which waits for every gradient.

By hand, with many more families: python tests/training/reached_ranks.py [NAMES …]
"""

import hashlib
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from test_regimes_with_losses import LOSSES, PARTS, Backbone, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import found_by_two, joined

from robustfg import models
from robustfg.losses import Softmax

FAMILIES = {  # the options of conf/model, by small relatives, and other families
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]},
    "resnet50": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "test_convnext": {}, "vgg11": {"mlp_ratio": 0.01}, "test_efficientnet": {}, "test_vit": {}, "test_mambaout": {},
    "test_nfnet": {}, "test_byobnet": {}, "test_resnet": {}, "mobilenetv3_small_050": {}, "mobileone_s0": {},
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
    "pit_ti_224": {"depth": [1, 1, 1]}, "lcnet_035": {}, "starnet_s050": {},
}  # fmt: skip
MORE = """
beit3_base_patch16_224 cait_xxs24_224 convit_tiny convmixer_768_32 convnextv2_atto cpubone_nano cs3darknet_focus_s
cspnext_tiny csatv2 davit_tiny deit_tiny_patch16_224 densenet121 dla34 dla46_c dpn48b eca_nfnet_l0 edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050 gmlp_ti16_224 halonet_h1 hardcorenas_a
hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto inception_v3 lcnetv2_small legacy_seresnet18
levit_128s lowformer_b0 mixer_s32_224 mobilenetv4_conv_small_050 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny
nextvit_small nf_regnet_b0 pit_ti_distilled_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnety_002
repghostnet_050 repvgg_a0 repvit_m1 res2next50 resmlp_12_224 resnest14d resnetv2_18 rexnet_100 sam2_hiera_tiny
selecsls42 sequencer2d_s shvit_s1 skresnet18 swiftformer_xs swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_coatnet
test_vit3 test_vit4 test_vit_relpos tf_efficientnet_lite0 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_m
twins_svt_small vgg11_bn visformer_tiny vit_pe_core_tiny_patch16_384 vit_tiny_r_s16_p8_224 vitamin_small_224
volo_d1_224 xception41 xcit_nano_12_p8_224
"""


class Step(nn.Module):
    def __init__(self, backbone, loss):
        super().__init__()
        self.backbone, self.loss = backbone, loss

    def forward(self, image, label):
        return self.loss.loss(self.loss(self.backbone(image)), label)["loss"]


def step(make, size, rank):
    """A hash of the weights after two steps on images of its own, and what went wrong: None where nothing did.

    In the second step DDP reports gradients that the first did not bring.
    """
    torch.manual_seed(0)
    try:
        part = Step(*make()).train()
        model = DistributedDataParallel(part, find_unused_parameters=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        torch.manual_seed(1 + rank)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.rand(4, 3, size, size), torch.arange(4)).backward()
            optimizer.step()
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"[:300]
    weights = hashlib.sha256()
    for value in part.parameters():
        weights.update(value.detach().contiguous().numpy().tobytes())
    return weights.hexdigest(), None


def with_softmax(name, options, size):
    backbone = models.Backbone(name=name, image_size=size, options=options)
    return backbone, Softmax(channels=backbone.channels, num_classes=4)


def size_of(name):
    config = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config.fixed_input_size and not name.startswith("test_vit") else 64


def by_hand():
    os.environ["REACHED"] = " ".join(sys.argv[1:]) or MORE
    with tempfile.TemporaryDirectory() as folder:
        first, second = found_by_two(Path(__file__).name, folder)
    for name, (weights, error) in first.items():
        print(name, error or ("as the other rank" if second[name][0] == weights else "OTHER WEIGHTS"))


def main():
    rank, folder = joined()
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found, chosen = {}, os.environ.get("REACHED", "").split()
    for name, options in ({name: {} for name in chosen} if chosen else FAMILIES).items():
        size = size_of(name)
        found[name] = step(partial(with_softmax, name, options, size), size, rank)
    for name in () if chosen else [*LOSSES, *PARTS]:
        found[f"loss={name}"] = step(lambda name=name: (Backbone(), loss_of(name)), 16, rank)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    by_hand() if len(sys.argv) != 4 or not sys.argv[1].isdecimal() else main()
