"""Targeted objectives, the choice of targets, and the rounds of a targeted attack."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_apgd import INDEX, Net, images, never

from robustfg.attacks import (
    APGD,
    L1,
    L1APGD,
    Cascade,
    CrossEntropy,
    Engine,
    GradientAttack,
    Linf,
    MostConfused,
    Siblings,
    Square,
    Steepest,
    TargetedCrossEntropy,
    TargetedDLR,
    TargetedMargin,
    TopClasses,
    Transfer,
)
from robustfg.core.errors import UserError
from robustfg.core.types import Output

OBJECTIVES = [TargetedMargin(), TargetedDLR(), TargetedCrossEntropy()]


@st.composite
def cases(draw):
    """Logits of one to four samples, their labels, and other classes."""
    classes, count = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    logit = st.floats(-30, 30)
    rows = draw(st.lists(st.lists(logit, min_size=classes, max_size=classes), min_size=count, max_size=count))
    label = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    target = [(true + draw(st.integers(1, classes - 1))) % classes for true in label]
    return rows, label, target


def naive(objective, row, label, target):
    if isinstance(objective, TargetedCrossEntropy):
        return row[target] - math.log(math.fsum(math.exp(value) for value in row))
    margin = row[target] - row[label]
    if isinstance(objective, TargetedMargin) or len(row) < 4:
        return margin
    first, _, third, fourth, *_ = sorted(row, reverse=True)
    return margin / (first - (third + fourth) / 2 + 1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@settings(deadline=None, max_examples=80)
@given(case=cases())
def test_targeted_objectives_equal_their_formulas_for_any_number_of_classes(objective, case):
    rows, label, target = case
    logits = torch.tensor(rows, dtype=torch.float64)
    expected = [naive(objective, *one) for one in zip(rows, label, target, strict=True)]
    score = objective(logits, torch.tensor(label), torch.tensor(target))
    assert score.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    output = Output(logits=logits, embedding=logits)
    assert torch.equal(objective(output, torch.tensor(label), torch.tensor(target)), score)


def test_the_targeted_dlr_of_equal_logits_and_its_gradient_are_finite():
    logits = torch.zeros(1, 5, requires_grad=True)
    score = TargetedDLR()(logits, torch.tensor([0]), torch.tensor([1]))
    score.sum().backward()
    assert score.item() == 0
    assert logits.grad.isfinite().all()


# --- Choice


@settings(deadline=None, max_examples=80)
@given(case=cases(), count=st.integers(1, 9), data=st.data())
def test_targets_are_siblings_first_then_the_others_by_falling_logit(case, count, data):
    rows, label, _ = case
    classes = len(rows[0])
    groups = data.draw(st.lists(st.sampled_from(["a", "b", 3]), min_size=classes, max_size=classes))
    logits, true = torch.tensor(rows, dtype=torch.float64), torch.tensor(label)
    top = TopClasses(count=count).choose(logits, true)
    near = Siblings(count=count, groups=groups).choose(logits, true)
    assert torch.equal(Siblings(count=count).choose(logits, true), top)
    assert top.shape == near.shape == (len(rows), min(count, classes - 1))
    for sample, row in enumerate(rows):
        wrong = [k for k in range(classes) if k != label[sample]]
        by_logit = sorted(wrong, key=lambda k: -row[k])
        kin = sorted(wrong, key=lambda k: (groups[k] != groups[label[sample]], -row[k]))
        assert top[sample].tolist() == by_logit[:count]
        assert near[sample].tolist() == kin[:count]


@settings(deadline=None, max_examples=80)
@given(case=cases(), count=st.integers(1, 9), data=st.data())
def test_the_most_confused_classes_come_first_and_equal_ones_by_falling_logit(case, count, data):
    rows, label, _ = case
    classes = len(rows[0])
    row = st.lists(st.sampled_from([0, 1, 2.5, 40]), min_size=classes, max_size=classes)
    table = data.draw(st.lists(row, min_size=classes, max_size=classes))
    logits, true = torch.tensor(rows, dtype=torch.float64), torch.tensor(label)
    chosen = MostConfused(count=count, confusion=table).choose(logits, true)
    assert torch.equal(MostConfused(count=count, confusion=torch.tensor(table)).choose(logits, true), chosen)
    for sample, values in enumerate(rows):
        own = label[sample]
        wrong = [k for k in range(classes) if k != own]
        assert chosen[sample].tolist() == sorted(wrong, key=lambda k: (-table[own][k], -values[k]))[:count]


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        ([[1, 2, 3], [4, 5, 6]], r"K x K finite numbers, got \(2, 3\)"),
        ([1, 2], r"K x K finite numbers, got \(2,\)"),
        ([[1, 2], [3]], "K x K finite numbers: expected sequence of length 2"),
        ([["a", "b"], ["c", "d"]], "K x K finite numbers: "),
        ([[1, float("nan")], [1, 1]], "K x K finite numbers"),
    ],
)
def test_a_confusion_that_is_no_square_of_numbers_is_refused_by_name(confusion, message):
    with pytest.raises(UserError, match=f"targets.confusion must be {message}"):
        MostConfused(confusion=confusion)


def test_a_confusion_of_other_classes_or_none_at_all_is_told_when_it_is_asked():
    with pytest.raises(UserError, match="targets.confusion must be of 5 classes, got 2"):
        MostConfused(confusion=[[1, 2], [3, 4]]).choose(torch.zeros(2, 5), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="targets.confusion must be given, K x K numbers; only an evaluation measures"):
        MostConfused().choose(torch.zeros(2, 5), torch.tensor([0, 1]))


def test_a_measured_confusion_reaches_open_targets_wherever_they_are_and_is_measured_only_for_those():
    asked, table = [], torch.eye(5, dtype=torch.float64)
    measure = lambda: asked.append(1) or table  # noqa: E731
    given = make(APGD, targets=MostConfused(confusion=table.flip(0)))
    for attack in (given, make(APGD), Cascade(attacks={"a": given}), Square(threat=Linf(epsilon=0.1))):
        assert attack.told(measure).settings() == attack.settings()
    assert not asked
    open_ = make(APGD, targets=MostConfused(count=2))
    transfer = Transfer(attack=open_, surrogate=Net(), surrogate_name="net")
    told = Cascade(attacks={"a": Cascade(attacks={"b": open_}), "c": transfer}).told(measure).attacks
    for inner in (told["a"].attacks["b"], told["c"].attack):
        assert inner.targets.confusion is table
        assert inner.targets.count == 2
        assert inner.rounds == 2
    assert open_.targets.confusion is None


def test_confusions_are_told_apart_in_description_and_settings():
    tables = [None, torch.eye(5), torch.eye(5).flip(0), torch.eye(5).tolist()]
    attacks = [make(APGD, targets=MostConfused(confusion=table)) for table in tables]
    shown = [json.dumps(attack.describe()["targets"]) for attack in attacks]
    assert len(set(shown)) == 3
    assert shown[1] == shown[3]
    assert len({json.dumps(attack.settings()) for attack in attacks}) == 4


@pytest.mark.parametrize("odd", [float("nan"), float("-inf")])
def test_logits_that_are_not_finite_come_last_and_the_label_never(odd):
    logits = torch.tensor([[odd, 1.0, odd, 2.0], [odd, odd, odd, odd]])
    chosen = TopClasses().choose(logits, torch.tensor([2, 1]))
    assert chosen.tolist() == [[3, 1, 0], [0, 2, 3]]


def test_groups_that_do_not_cover_the_classes_and_no_targets_are_refused_by_name():
    with pytest.raises(UserError, match="targets.groups must name the group of 5 classes, got 3 groups"):
        Siblings(groups=[0, 0, 1]).choose(torch.zeros(2, 5), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="targets.count must be >= 1, got 0"):
        TopClasses(count=0)


# --- Attacks


def make(kind, **options):
    options = {"threat": Linf(epsilon=0.05), "engine": Engine(fold=False), "steps": 6, "objective": TargetedMargin(),
               "targets": TopClasses(count=3), **options}  # fmt: skip
    if kind is GradientAttack:
        options = {"step": Steepest(size="eps/4"), "random_start": True, **options}
    if kind is L1APGD:
        options["threat"] = L1(epsilon=1)
    return kind(**options)


KINDS = pytest.mark.parametrize("kind", [APGD, L1APGD, GradientAttack])


class Watched:
    """A targeted objective that notes what it is asked."""

    def __new__(cls, seen):
        class Noting(TargetedMargin):
            def __call__(self, output, label, target):
                seen.append((label.tolist(), target.tolist()))
                return super().__call__(output, label, target)

        return Noting()


@KINDS
def test_without_a_random_start_every_target_begins_at_the_clean_image_and_the_next_restart_at_random(kind):
    first_seen = {}

    def model(image):
        first_seen.setdefault(len(rounds), image.detach().clone())
        return Net()(image)

    rounds, clean, label = [], images(), torch.tensor([0, 1, 2, 3, 4, 0])
    attack = make(kind, random_start=False, restarts=2, decision=never)
    logits = Net()(clean).detach()  # known, or the first round would ask for them
    for attempt in attack.attempts(model, clean, label, INDEX, logits=logits):
        rounds.append(attempt)
    starts = [torch.equal(first_seen[number], clean) for number in range(6)]
    assert starts == [True, True, True, False, False, False]


@KINDS
@pytest.mark.parametrize("restarts", [1, 2])
def test_round_r_drives_every_sample_to_its_target_r_and_begins_anew_after_the_last(kind, restarts):
    model, clean, seen = Net(), images(), []
    label = torch.tensor([0, 1, 2, 3, 4, 0])
    attack = make(kind, objective=Watched(seen), restarts=restarts, decision=never)
    assert attack.rounds == 3 * restarts
    assert len(list(attack.attempts(model, clean, label, INDEX))) == 3 * restarts
    order = model(clean).detach().scatter(1, label[:, None], -torch.inf).argsort(1, descending=True)
    expected = [order[:, turn % 3].tolist() for turn in range(3 * restarts) for _ in range(6)]
    assert [target for _, target in seen] == expected
    assert {tuple(true) for true, _ in seen} == {tuple(label.tolist())}


@KINDS
def test_targets_stay_with_their_samples_when_others_leave(kind):
    model, clean, seen = Net(), images(), []
    label = model(clean).argmax(1)
    order = model(clean).detach().scatter(1, label[:, None], -torch.inf).argsort(1, descending=True)
    options = {} if kind is L1APGD else {"threat": Linf(epsilon=0.015)}
    attack = make(kind, objective=Watched(seen), steps=40, **options)
    list(attack.attempts(model, clean, label, INDEX))
    sizes = {len(true) for true, _ in seen}
    assert len(sizes) > 1
    known = {(int(true), int(target)) for true, row in zip(label, order[:, :3], strict=True) for target in row}
    assert {pair for true, target in seen for pair in zip(true, target, strict=True)} <= known


@KINDS
def test_clean_logits_are_asked_for_once_or_taken_from_the_caller(kind):
    model, clean, calls, seen = Net(), images(), [], []
    label, attack = torch.tensor([0, 1, 2, 3, 4, 0]), make(kind, objective=Watched(seen), decision=never)
    watched = lambda image: calls.append(image.detach().clone()) or model(image)  # noqa: E731
    first, *others = attack.attempts(watched, clean, label, INDEX)
    assert torch.equal(calls[0], clean)
    assert len(calls) == 3 * 7 + 1
    assert first.forwards.tolist() == [8] * 6
    assert all(attempt.forwards.tolist() == [7] * 6 for attempt in others)
    assert all(attempt.backwards.tolist() == [6] * 6 for attempt in [first, *others])
    asked, own = calls[1:], list(seen)
    calls.clear(), seen.clear()
    attempts = list(attack.attempts(watched, clean, label, INDEX, logits=model(clean)))
    assert [attempt.forwards.tolist() for attempt in attempts] == [[7] * 6] * 3
    assert torch.equal(torch.stack(calls), torch.stack(asked))
    assert seen == own
    calls.clear(), seen.clear()
    list(attack.attempts(watched, clean, label, INDEX, logits=-model(clean)))
    assert seen != own


@KINDS
@pytest.mark.parametrize("classes", [2, 3])
def test_with_fewer_wrong_classes_than_targets_the_surplus_rounds_cost_nothing_and_change_nothing(kind, classes):
    model, clean, calls = Net(classes=classes), images(), []
    label = model(clean).argmax(1)
    attack = make(kind, objective=TargetedDLR(), targets=TopClasses(count=4), steps=5, decision=never)
    watched = lambda image: calls.append(1) or model(image)  # noqa: E731
    attempts = list(attack.attempts(watched, clean, label, INDEX))
    assert len(attempts) == 4
    assert len(calls) == (classes - 1) * 6 + 1
    for surplus in attempts[classes - 1 :]:
        assert torch.equal(surplus.image, attempts[classes - 2].image)
        assert torch.equal(surplus.margin, attempts[classes - 2].margin)
        assert surplus.forwards.tolist() == surplus.backwards.tolist() == [0] * 6


@KINDS
def test_targeted_results_do_not_depend_on_batch_size_or_order(kind):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = make(kind, objective=TargetedDLR(), steps=12)
    together = attack(model, clean, label, INDEX)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.allclose(attack(model, clean[order], label[order], INDEX[order]), together[order], rtol=0, atol=1e-9)
    parts = [attack(model, *part) for part in zip(*(x.split(1) for x in (clean, label, INDEX)), strict=True)]
    assert torch.allclose(torch.cat(parts), together, rtol=0, atol=1e-9)


@KINDS
def test_an_objective_and_targets_need_each_other(kind):
    with pytest.raises(UserError, match="objective targeted_margin needs targets"):
        make(kind, targets=None)
    with pytest.raises(UserError, match="targets need a targeted objective, such as TargetedMargin, got cross_entropy"):
        make(kind, objective=CrossEntropy())


@KINDS
def test_targets_are_part_of_the_description_and_count_in_the_passes(kind):
    attack = make(kind, targets=Siblings(count=2, groups=[0, 0, 1, 1, 1]), restarts=3)
    described = json.loads(json.dumps(attack.describe()))
    assert described["targets"] == {"choice": "siblings", "count": 2, "groups": [0, 0, 1, 1, 1]}
    assert described["objective"] == "targeted_margin"
    assert described["restarts"] == 3
    assert attack.passes == 6 * 7 + 1  # the clean image, for the targets


@pytest.mark.parametrize("kind", [GradientAttack, APGD])
def test_without_random_start_every_target_of_the_first_restart_begins_at_the_clean_image(kind):
    model, clean, starts = Net(), images(), []
    label = model(clean).argmax(1)
    attack = kind(
        threat=Linf(epsilon=1e-4), steps=2, targets=TopClasses(count=2), objective=TargetedMargin(), restarts=2,
        random_start=False,
    )  # fmt: skip
    with torch.no_grad():
        logits = model(clean)
    seen = []

    def watched(image):
        seen.append(image.detach().clone())
        return model(image)

    for restart, _ in enumerate(attack.attempts(watched, clean, label, INDEX, logits=logits)):
        starts.append(torch.equal(seen[0], clean))
        seen.clear()
        assert restart < 4
    assert starts == [True, True, False, False]
