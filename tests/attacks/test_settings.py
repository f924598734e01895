"""Settings tell any two attacks apart that can differ: an interrupted evaluation continues only under the same."""

import copy
import functools
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path

import pytest
import torch
from small import Net
from torch import nn

import robustfg.attacks as attacks
from robustfg.attacks import (
    APGD,
    L0,
    L1,
    L1APGD,
    L2,
    Accepted,
    BoundaryAttack,
    CarliniWagner,
    Cascade,
    CrossEntropy,
    ElasticNet,
    FeatureAttack,
    FeatureBank,
    FooledFirst,
    Frame,
    GradientAttack,
    Lagrangian,
    LagrangianSearch,
    Linf,
    Margin,
    Momentum,
    NearestWrongCentre,
    Nesterov,
    OnHead,
    Patch,
    ScaledCrossEntropy,
    ScoreOf,
    Selective,
    SelectivePGD,
    SparseRS,
    Steepest,
    Summed,
    TargetedAndAccepted,
    TargetedAndNear,
    TargetedMargin,
    TopClasses,
    Transfer,
    UniversalPerturbation,
    WrongAndAccepted,
    WrongAndNear,
    adapters,
)
from robustfg.attacks.settings import settings_of
from robustfg.core.types import logits_of


def largest(output):
    return logits_of(output).amax(1)


def bank(**changes):
    return FeatureBank(**{"embedding": torch.eye(3), "label": torch.arange(3)} | changes)


def zeros():
    return torch.zeros(1, 3, 4, 4)


NEEDS = {
    Accepted: {"score": largest, "tau": 1.0},
    Cascade: {"attacks": {"a": APGD(threat=Linf(epsilon=0.1)), "b": GradientAttack(threat=Linf(epsilon=0.1))}},
    BoundaryAttack: {"threat": L2(epsilon=0.5)},
    CarliniWagner: {"threat": L2(epsilon=0.5)},
    ElasticNet: {"threat": L1(epsilon=4)},
    FeatureAttack: {"bank": bank()},
    FooledFirst: {"score": largest, "tau": 1.0},
    FeatureBank: {"embedding": torch.eye(3), "label": torch.arange(3)},
    Frame: {"epsilon": 1},
    L0: {"epsilon": 3},
    L1APGD: {"threat": L1(epsilon=4)},
    Lagrangian: {"score": largest, "tau": 1.0, "weight": 2.0},
    LagrangianSearch: {"objective": Lagrangian(score=largest, tau=1.0, weight=2.0)},
    OnHead: {"objective": Margin(), "head": "a"},
    ScoreOf: {"name": "a"},
    Selective: {"score": largest, "tau": 1.0},
    SelectivePGD: {"score": largest},
    SparseRS: {"threat": L0(epsilon=3)},
    Summed: {"objectives": [Margin(), CrossEntropy()]},
    TargetedAndAccepted: {"score": largest, "tau": 1.0},
    TargetedAndNear: {"tau": 1.0},
    Transfer: {"attack": APGD(threat=Linf(epsilon=0.1)), "surrogate": Net(), "surrogate_name": "net"},
    UniversalPerturbation: {"perturbation": zeros()},
    WrongAndAccepted: {"score": largest, "tau": 1.0},
    WrongAndNear: {"tau": 1.0},
}
"""What a class cannot be made without, beyond a plain threat, epsilon or step size."""
PLAIN = {"threat": Linf(epsilon=0.1), "epsilon": 0.1, "size": "eps/4", "head": "a"}

EXPORTED = [
    thing
    for name, thing in sorted(vars(attacks).items())
    if name != "Attempt" and isinstance(thing, type) and is_dataclass(thing) and not inspect.isabstract(thing)
]
PEERS = [getattr(adapters, name) for name in adapters.__all__]
PEERS_NEED = {
    "ART": {"attack": "FastGradientMethod"},
    "AdvLib": {"attack": "fmn"},
    "Foolbox": {"attack": "LinfPGD"},
    "PyAutoAttack": {},
}


def made(kind):
    required = [field.name for field in fields(kind) if field.init and field.default is field.default_factory]
    needed = NEEDS.get(kind, {})
    return kind(**{name: PLAIN[name] for name in required if name not in needed}, **needed)


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_every_field_of_every_exported_class_is_told(kind):
    tell_every_field(made(kind))


@pytest.mark.parametrize("kind", PEERS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_adapter_is_told(kind):
    pytest.importorskip({"ART": "art", "AdvLib": "adv_lib"}.get(kind.__name__, kind.__name__.lower()))
    attack = kind(threat=Linf(epsilon=0.1), **PEERS_NEED[kind.__name__])
    tell_every_field(attack)
    assert attack.settings()["library"] == metadata.version(kind.package)


def tell_every_field(thing):
    """Puts values of many kinds into one field after the other: all must be told apart, and from what was there."""
    told = [json.dumps(settings_of(thing))]
    for field in fields(thing):
        for value in (0.125, "0.125", True, None, [1, 2], torch.ones(2), torch.ones(2).double(), largest, Net()):
            changed = copy.copy(thing)
            object.__setattr__(changed, field.name, value)
            if settings_of(value) != settings_of(getattr(thing, field.name)):
                told.append(json.dumps(attack_settings(changed)))
    assert not [text for text, times in Counter(told).items() if times > 1]
    assert len(told) >= 1 + 8 * len(fields(thing))


def attack_settings(thing):
    return thing.settings() if isinstance(thing, attacks.Attack) else settings_of(thing)


DIFFERENT = {
    "place": lambda place: GradientAttack(threat=Patch(epsilon=0.1, place=(place, 0))),
    "share": lambda share: GradientAttack(threat=L1(epsilon=1, share=share)),
    "gap": lambda gap: APGD(threat=Linf(epsilon=0.1), objective=ScaledCrossEntropy(gap * 50)),
    "tau": lambda tau: GradientAttack(threat=Linf(epsilon=0.1), objective=WrongAndNear(tau=tau)),
    "entries": lambda x: FeatureAttack(threat=Linf(epsilon=0.1), bank=bank(embedding=torch.eye(3) + x)),
    "threshold": lambda tau: GradientAttack(
        threat=Linf(epsilon=0.1), decision=WrongAndAccepted(score=largest, tau=tau)
    ),
    "score": lambda s: GradientAttack(
        threat=Linf(epsilon=0.1),
        decision=WrongAndAccepted(score=functools.partial(torch.quantile, q=s), tau=1.0),
    ),
    "surrogate": lambda x: Transfer(
        attack=APGD(threat=Linf(epsilon=0.1)), surrogate=shifted(x), surrogate_name="the same name"
    ),
    "decision": lambda tau: Transfer(
        attack=APGD(threat=Linf(epsilon=0.1)), surrogate=Net(), surrogate_name="n", decision=WrongAndNear(tau=tau)
    ),
    "deep": lambda share: Cascade(
        attacks={"a": Cascade(attacks={"b": GradientAttack(threat=L1(epsilon=1, share=share))})}
    ),
}  # fmt: skip


def shifted(amount):
    net = Net()
    net[3].bias.data += amount
    return net


@pytest.mark.parametrize("what", DIFFERENT)
def test_attacks_that_find_other_images_have_other_settings(what):
    one, same, other = (json.dumps(DIFFERENT[what](value).settings()) for value in (0.25, 0.25, 0.5))
    assert one == same
    assert one != other


def test_the_order_of_stages_is_told():
    stages = NEEDS[Cascade]["attacks"]
    turned = dict(reversed(stages.items()))
    assert Cascade(attacks=stages).settings() != Cascade(attacks=turned).settings()
    assert json.dumps(Cascade(attacks=stages).settings(), sort_keys=True) != json.dumps(
        Cascade(attacks=turned).settings(), sort_keys=True
    )


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy(), NearestWrongCentre()])
def test_classes_without_fields_are_told_by_their_names(objective):
    others = [settings_of(other) for other in (Margin(), CrossEntropy(), NearestWrongCentre(), TargetedMargin())]
    assert others.count(settings_of(objective)) == 1
    rules = [settings_of(rule) for rule in (Steepest(size=1), Momentum(size=1), Nesterov(size=1))]
    assert len({json.dumps(rule) for rule in rules}) == 3


class Threshold:
    """An objective with attributes that is no dataclass."""

    name = "threshold"

    def __init__(self, tau):
        self.tau = tau

    def __call__(self, output, label):
        return logits_of(output).amax(1) - self.tau

    def score(self, output):
        return logits_of(output).amax(1)


def test_objects_and_functions_of_the_user_are_told_by_what_they_hold_and_do():
    def above(tau):
        return lambda output: output > tau

    functions = [lambda x: x + 1, lambda x: x + 2, above(1), above(2), largest, torch.sum, Threshold, len]
    objects = [
        Threshold(1),
        Threshold(2),
        Threshold(1).score,
        Threshold(2).score,
        nn.ReLU(),
        nn.Dropout(),
        nn.Dropout(0.1),
    ]
    plain = [{"a": 1}, {"a": "1"}, {1: 1}, {"1": 1}, {1, 2}, {2, 3}, Path("a"), Path("b"), float("inf"), torch.float32]
    tensors = [torch.zeros(2), torch.zeros(1, 2), torch.zeros(2).double(), torch.zeros(2).bfloat16(), torch.tensor(0.0)]
    arrays = [torch.zeros(2).numpy(), torch.ones(2).numpy()]
    told = [json.dumps(settings_of(thing)) for thing in functions + objects + plain + tensors + arrays]
    assert len(set(told)) == len(told)
    assert settings_of(above(1)) == settings_of(above(1))
    assert settings_of(Threshold(1)) == settings_of(Threshold(1))
    assert settings_of(torch.zeros(2, 2).T) == settings_of(torch.zeros(2, 2))


def test_another_process_tells_the_same():
    """Neither addresses nor the order of sets, which Python's hash seed changes, may reach a fingerprint."""
    script = (
        "import json, torch\nfrom torch import nn\nfrom robustfg.attacks.settings import settings_of\n"
        "class Odd(nn.Module):\n    def extra_repr(self): return repr(object())\n"
        "known = lambda x: x in {'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'}\n"
        "print(json.dumps(settings_of([known, {'a', 'b', 'c'}, nn.Sequential(Odd()), object(), torch.arange(3)])))\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]


def test_targets_are_told_down_to_their_groups_and_counts():
    aimed = {"threat": Linf(epsilon=0.1), "objective": TargetedMargin()}
    told = [
        json.dumps(APGD(targets=targets, **aimed).settings())
        for targets in (TopClasses(), TopClasses(count=3), attacks.Siblings(), attacks.Siblings(groups=[0, 1, 1]))
    ]
    assert len(set(told)) == 4


def test_a_summary_shows_decision_and_engine_only_where_they_were_changed():
    plain = APGD(threat=Linf(epsilon=0.1))
    changed = APGD(threat=Linf(epsilon=0.1), decision=WrongAndNear(tau=2), engine=attacks.Engine(samples=3))
    assert plain.shown() == plain.describe()
    assert changed.shown()["engine"] == {"samples": 3}
    assert changed.shown()["decision"] | {"name": "wrong_and_near", "tau": 2} == changed.shown()["decision"]
    transfer = Transfer(attack=changed, surrogate=Net(), surrogate_name="n")
    assert transfer.shown()["engine"] == {"samples": 3}
    json.dumps(transfer.shown())
