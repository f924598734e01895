import itertools
import json

import pytest
import torch
from test_gradient import INDEX, LABEL, Net, Sure, images, margins, pgd

from robustfg.attacks import Cascade, GradientAttack, Linf, Margin, Patch, Rigid, Spatial, WrongAndNear
from robustfg.attacks.objectives.logits import CrossEntropy
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric


def stages(**more):
    return {"short": pgd(steps=1, size="eps/8"), "long": pgd(steps=8, restarts=2, random_start=True)} | more


def spatial(*limits):
    return {str(rank): Spatial(threat=Rigid(**limit)) for rank, limit in enumerate(limits)}


def patches(*places):
    threats = [Patch(epsilon=0.25, place=place) for place in places]
    return {str(rank): GradientAttack(threat=threat) for rank, threat in enumerate(threats)}


def setting():
    model, clean = Net(), images()
    return model, clean, model(clean).argmax(1)


def test_a_stage_attacks_only_what_the_earlier_ones_left_and_the_union_is_reported():
    model, clean, label = setting()
    cascade = Cascade(attacks=stages(), name="all")
    attempts = list(cascade.attempts(model, clean, label, INDEX))
    assert len(attempts) == cascade.rounds == 3
    for before, after in itertools.pairwise(attempts):
        fooled = margins(model, before.image, label) < 0
        assert torch.equal(after.forwards == 0, fooled)
        assert torch.equal(after.image[fooled], before.image[fooled])
        assert torch.equal(after.first_success[fooled], before.first_success[fooled])
    broken = [int((margins(model, attempt.image, label) < 0).sum()) for attempt in attempts]
    assert broken == sorted(broken)
    assert 0 < broken[0] < broken[-1]


def test_its_union_is_that_of_its_stages_run_apart():
    model, clean, label = setting()
    cascade = Cascade(attacks=stages(), name="all")
    apart = torch.zeros(6, dtype=torch.bool)
    for attack in cascade.attacks.values():
        apart |= margins(model, attack(model, clean, label, INDEX), label) < 0
    together = margins(model, cascade(model, clean, label, INDEX), label) < 0
    assert torch.equal(together, apart)


def test_stages_draw_other_random_numbers_than_one_another_and_than_another_cascade():
    attack = pgd(random_start=True, last_iterate=True)
    names = {
        a.name for name in ("x", "y") for a in Cascade(attacks={"a": attack, "b": attack}, name=name).attacks.values()
    }
    assert len(names) == 4


def test_a_smaller_radius_reaches_every_stage():
    cascade = Cascade(attacks=stages()).within(Linf(epsilon=0.01))
    assert {attack.threat.radius for attack in cascade.attacks.values()} == {cascade.threat.radius} == {0.01}
    clean = images()
    assert (cascade(Sure(), clean, LABEL, INDEX) - clean).abs().max() <= 0.01 + 1e-9


def test_the_description_names_every_stage_with_its_rounds():
    described = json.loads(json.dumps(Cascade(attacks=stages()).describe()))
    assert {name: stage["rounds"] for name, stage in described["stages"].items()} == {"short": 1, "long": 2}
    assert (described["norm"], described["epsilon"], described["steps"]) == ("linf", "0.1", 8)


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({}, "a cascade needs attacks"),
        ({"a": pgd(), "b": pgd(epsilon=0.2)}, r"the same threat, got Linf\(epsilon=0.1\) and Linf\(epsilon=0.2\)"),
        (spatial({"degrees": 5}, {"degrees": 90}), "the same threat, got Rigid"),
        (spatial({"shift": "1/32"}, {"shift": "3/32"}), "the same threat, got Rigid"),
        (patches((0, 0), (1, 1)), "the same threat, got Patch"),
        (patches((0, 0), None), "the same threat, got Patch"),
        ({"a": pgd(), "b": pgd(decision=WrongAndNear(tau=2))}, r"the same decision, got Margin\(\) and WrongAndNear"),
        (
            {"a": pgd(decision=WrongAndNear(tau=1)), "b": pgd(decision=WrongAndNear(tau=2))},
            r"the same decision, got WrongAndNear\(tau=1",
        ),
    ],
)
def test_what_is_no_cascade_is_refused(attacks, message):
    with pytest.raises(UserError, match=message):
        Cascade(attacks=attacks)


def test_stages_agree_however_their_epsilon_was_typed_and_decide_for_the_cascade():
    decision = WrongAndNear(tau=3)
    both = {"a": pgd(epsilon="1/4", decision=decision), "b": pgd(epsilon=0.25, decision=decision)}
    cascade = Cascade(attacks={"first": Cascade(attacks=both), **both})
    assert cascade.decision == decision
    assert cascade.shown()["decision"]["tau"] == 3


@pytest.mark.parametrize("option", [{"seed": 1}, {"restarts": 2}])
def test_seed_and_restarts_are_the_stages_own(option):
    with pytest.raises(UserError, match=f"{next(iter(option))} is the stages' own"):
        Cascade(attacks=stages(), **option)


def test_passes_are_those_of_all_stages():
    assert Cascade(attacks=stages(last=pgd(steps=4, last_iterate=True))).passes == 2 + 2 * 9 + 4


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_samples_wrong_when_clean_leave_after_the_first_look(objective):
    model, clean, label = setting()
    attempts = list(
        Cascade(attacks={"a": pgd(objective=objective), "b": pgd()}).attempts(model, clean, (label + 1) % 5)
    )
    assert attempts[0].forwards.tolist() == [1] * 6
    assert attempts[1].forwards.tolist() == [0] * 6
