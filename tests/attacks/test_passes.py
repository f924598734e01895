"""What an attack says it may cost, against what it does cost."""

from dataclasses import replace

import pytest
import torch
from small import INDEX, Net, images

from robustfg.attacks import (
    APGD,
    BIM,
    FAB,
    FGSM,
    FMN,
    L1,
    L1APGD,
    L2,
    MIM,
    PGD,
    Backtracking,
    BoundaryAttack,
    CarliniWagner,
    Cascade,
    DeepFool,
    ElasticNet,
    Engine,
    EstimatedGradient,
    GradientAttack,
    HopSkipJump,
    KullbackLeibler,
    Lagrangian,
    LagrangianSearch,
    Linf,
    SelectivePGD,
    Spatial,
    Square,
    TargetedDLR,
    TargetedMargin,
    TopClasses,
    Transfer,
    UniversalPerturbation,
)
from robustfg.core.types import logits_of

LINF = Linf(epsilon=0.05)
AIMED = {"objective": TargetedMargin(), "targets": TopClasses(count=3), "restarts": 2}
COMPARED = {"objective": KullbackLeibler(), "random_start": True, "restarts": 2}


class Never:
    """A decision that no attacker wins."""

    name = "never"

    def __call__(self, output, label):
        return -torch.ones_like(label, dtype=torch.float64)


def energy(output):
    return -logits_of(output).logsumexp(1)


ATTACKS = {
    "fgsm": FGSM(epsilon=0.05),
    "bim": BIM(epsilon=0.05, steps=4),
    "pgd": PGD(epsilon=0.05, steps=4, restarts=3),
    "mim": MIM(epsilon=0.05, steps=4),
    "gradient, targets": GradientAttack(threat=LINF, steps=4, **AIMED),
    "gradient, targets, last": GradientAttack(threat=LINF, steps=4, last_iterate=True, **AIMED),
    "gradient, clean answer": GradientAttack(threat=LINF, steps=4, **COMPARED),
    "gradient, clean answer, last": GradientAttack(threat=LINF, steps=4, last_iterate=True, **COMPARED),
    "apgd": APGD(threat=LINF, steps=6, restarts=2),
    "apgd, targets": APGD(threat=LINF, steps=6, **AIMED),
    "apgd, clean answer": APGD(threat=LINF, steps=6, **COMPARED),
    "apgd in l1, targets": L1APGD(
        threat=L1(epsilon=1), steps=6, larger_first=True, objective=TargetedDLR(), targets=TopClasses(count=4)
    ),
    "backtracking": Backtracking(threat=LINF, steps=4, restarts=2),
    "backtracking, targets": Backtracking(threat=LINF, steps=4, **AIMED),
    "backtracking, clean answer, last": Backtracking(threat=LINF, steps=4, last_iterate=True, **COMPARED),
    "lagrangian": LagrangianSearch(
        threat=LINF, objective=Lagrangian(score=energy, tau=1.0, weight=1.0), searches=2, steps=3, restarts=2
    ),
    "selective": SelectivePGD(threat=LINF, score=energy, steps=4, restarts=2),
    "nes": EstimatedGradient(threat=LINF, steps=2, samples=4, restarts=2),
    "square": Square(threat=LINF, queries=8, restarts=2),
    "spatial": Spatial(angles=3, shifts=2),
    "universal": UniversalPerturbation(threat=LINF, perturbation=torch.full((1, 3, 4, 4), 0.01)),
    "deepfool": DeepFool(threat=L2(epsilon=1), steps=3),
    "fmn": FMN(threat=L2(epsilon=1), steps=5),
    "cw": CarliniWagner(threat=L2(epsilon=1), searches=2, steps=4, early_abort=False),
    "ead": ElasticNet(threat=L1(epsilon=1), searches=2, steps=4),
    "fab": FAB(threat=LINF, steps=4, restarts=2),
    "fab, targets": FAB(threat=LINF, steps=4, targets=3),
    "boundary": BoundaryAttack(threat=L2(epsilon=1), queries=60),
    "hopskipjump": HopSkipJump(threat=L2(epsilon=1), queries=60),
}
FEWER = {"fab", "fab, targets", "boundary", "hopskipjump"}
"""The last steps of a walk make room for looks that only a success asks for; nothing is done without a wrong start."""


def spent(attack, model, clean, label):
    return sum(attempt.forwards for attempt in attack.attempts(model, clean, label, INDEX))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_that_never_succeeds_costs_the_passes_it_names(name):
    model, clean, asked = Net(), images(), []
    label = model(clean).argmax(1)
    model.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    attack = replace(ATTACKS[name], decision=Never(), engine=Engine(fold=False))
    cost = spent(attack, model, clean, label)
    assert cost.sum() == sum(asked)
    assert int(cost.max()) <= attack.passes
    assert name in FEWER or set(cost.tolist()) == {attack.passes}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_sample_costs_more_than_the_passes_that_an_attack_names(name):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = replace(ATTACKS[name], engine=Engine(fold=False))
    assert int(spent(attack, model, clean, label).max()) <= attack.passes


def test_stages_and_surrogates_are_counted_as_well():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    stages = {name: replace(ATTACKS[name], decision=Never()) for name in ("apgd", "apgd, targets", "square")}
    cascade = Cascade(attacks=stages)
    assert spent(cascade, model, clean, label).tolist() == [cascade.passes] * 6
    transfer = Transfer(attack=ATTACKS["apgd, targets"], surrogate=model, surrogate_name="t", decision=Never())
    assert spent(transfer, model, clean, label).tolist() == [transfer.passes] * 6
