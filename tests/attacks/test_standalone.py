import subprocess
import sys
from pathlib import Path

import robustfg

HEAVY = ["pytorch_lightning", "lightning", "hydra", "omegaconf", "timm", "torchvision", "torchmetrics", "wandb"]
USE = """
import sys, torch
from robustfg.attacks import GradientAttack, Linf, Steepest
attack = GradientAttack(threat=Linf(epsilon="8/255"), step=Steepest(size="eps"), steps=1, random_start=True)
attack(lambda image: image.mean((2, 3)), torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), torch.arange(2))
print(*sys.modules)
"""


def test_attacks_need_neither_lightning_nor_hydra_nor_timm():
    root = Path(robustfg.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, cwd=root, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)
