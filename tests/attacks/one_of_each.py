"""One of every attack on the small net, and a net that all of them can attack."""

import torch
from small import Net, images
from torch import nn

from robustfg.attacks import (
    APGD,
    FAB,
    FMN,
    L0,
    L1,
    L1APGD,
    L2,
    Backtracking,
    BoundaryAttack,
    CarliniWagner,
    Cascade,
    DeepFool,
    ElasticNet,
    EstimatedGradient,
    FeatureAttack,
    FeatureBank,
    Frame,
    GradientAttack,
    HopSkipJump,
    Linf,
    Momentum,
    Nesterov,
    Patch,
    ResizeAndPad,
    Smoothing,
    SparseRS,
    Spatial,
    Square,
    TargetedDLR,
    TopClasses,
    UniversalPerturbation,
)
from robustfg.core.types import Output

LABEL = Net()(images()).argmax(1)
LABEL[4] = (LABEL[4] + 1) % 5  # one is wrong when clean
BALL, SPHERE, DIAMOND = Linf(epsilon=0.02), L2(epsilon=0.1), L1(epsilon=0.5)
BANK = FeatureBank(torch.eye(5, dtype=torch.float64), torch.arange(5))
ATTACKS = {
    "pgd": GradientAttack(threat=BALL, steps=12, random_start=True, restarts=2),
    "pgd, last iterate": GradientAttack(threat=BALL, steps=12, random_start=True, last_iterate=True),
    "pgd l1": GradientAttack(threat=DIAMOND, steps=12, random_start=True),
    "pgd l0": GradientAttack(threat=L0(epsilon=2), steps=12, random_start=True),
    "mim": GradientAttack(threat=BALL, steps=12, step=Momentum(size="eps/4")),
    "nesterov": GradientAttack(threat=BALL, steps=12, step=Nesterov(size="eps/4"), last_iterate=True),
    "transforms": GradientAttack(threat=BALL, steps=12, seen_as=ResizeAndPad(), smoothing=Smoothing(size=3)),
    "patch": GradientAttack(threat=Patch(epsilon=0.25), steps=12, random_start=True),
    "frame": GradientAttack(threat=Frame(epsilon=1), steps=12, random_start=True),
    "apgd": APGD(threat=BALL, steps=20, restarts=2),
    "apgd l2": APGD(threat=SPHERE, steps=20),
    "apgd l1": L1APGD(threat=DIAMOND, steps=20),
    "apgd-t": APGD(threat=BALL, steps=10, objective=TargetedDLR(), targets=TopClasses(count=2)),
    "fab": FAB(threat=BALL, steps=10),
    "fab l2": FAB(threat=SPHERE, steps=10),
    "fab l1": FAB(threat=DIAMOND, steps=10),
    "square": Square(threat=BALL, queries=100),
    "square l2": Square(threat=SPHERE, queries=100),
    "square l1": Square(threat=DIAMOND, queries=100),
    "sparse rs": SparseRS(threat=L0(epsilon=2), queries=50),
    "cw": CarliniWagner(threat=SPHERE, searches=3, steps=15, initial_constant=1.0),
    "ead": ElasticNet(threat=DIAMOND, searches=3, steps=15, initial_constant=1.0),
    "deepfool": DeepFool(threat=SPHERE, steps=10),
    "fmn": FMN(threat=SPHERE, steps=15),
    "fmn l0": FMN(threat=L0(epsilon=2), steps=15),
    "boundary": BoundaryAttack(threat=SPHERE, queries=60),
    "hop skip jump": HopSkipJump(threat=SPHERE, queries=60, first_queries=10),
    "nes": EstimatedGradient(threat=BALL, steps=6, samples=8),
    "spatial": Spatial(tries=5),
    "features": FeatureAttack(threat=BALL, bank=BANK, steps=10, random_start=True),
    "backtracking": Backtracking(threat=BALL, steps=10),
    "universal": UniversalPerturbation(threat=BALL, perturbation=torch.full((1, 3, 4, 4), 0.02)),
    "cascade": Cascade(attacks={"a": GradientAttack(threat=BALL, steps=3), "b": APGD(threat=BALL, steps=10, name="b")}),
}


class Embedding(nn.Module):
    """A net whose logits are its features, too."""

    def __init__(self):
        super().__init__()
        self.inner = Net()

    def forward(self, image):
        logits = self.inner(image)
        return Output(logits=logits, embedding=logits)
