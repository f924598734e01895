import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustfg.attacks import (
    Accepted,
    FooledFirst,
    GradientAttack,
    Lagrangian,
    Linf,
    Margin,
    ScoreOf,
    Selective,
    Steepest,
    TargetedAndAccepted,
    TargetedAndNear,
    WrongAndAccepted,
    WrongAndNear,
)
from robustfg.core.errors import UserError
from robustfg.core.types import Output

QUARTERS = st.integers(-20, 40).map(lambda quarter: quarter / 4)  # exact in floats, and ties are frequent
DISTANCES = st.lists(st.lists(QUARTERS, min_size=3, max_size=3), min_size=1, max_size=6)
DTYPE = st.sampled_from([torch.float32, torch.float64])


def logits_and_labels(rows, dtype=torch.float64):
    return -torch.tensor(rows, dtype=dtype) / 2, torch.arange(len(rows)) % 3


def naive_h(row, label, tau, scale, margin):
    return min(
        max((row[k] - tau) / scale + margin, (row[k] - row[label]) / scale + margin)
        for k in range(len(row))
        if k != label
    )


@settings(deadline=None, max_examples=80)
@given(rows=DISTANCES, tau=QUARTERS.filter(lambda tau: tau > 0), margin=st.sampled_from([0.0, 0.05, 0.5]))
def test_the_objective_is_minus_the_formula(rows, tau, margin):
    logits, label = logits_and_labels(rows)
    expected = [-naive_h(row, int(true), tau, tau, margin) for row, true in zip(rows, label, strict=True)]
    assert WrongAndNear(tau=tau, margin=margin)(logits, label).tolist() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(rows=DISTANCES, tau=QUARTERS, dtype=DTYPE)
def test_as_a_decision_it_is_positive_exactly_where_the_class_is_wrong_and_the_input_accepted(rows, tau, dtype):
    """Ties of distances are the true class's; a distance equal to the threshold is accepted."""
    logits, label = logits_and_labels(rows, dtype)
    decided = WrongAndNear(tau=tau, margin=0, scale=2.5)(logits, label) > 0
    for row, true, won in zip(rows, label.tolist(), decided.tolist(), strict=True):
        wrong = any(row[k] < row[true] for k in range(3))
        assert won == (wrong and min(row) <= tau)


@settings(deadline=None, max_examples=200)
@given(rows=DISTANCES, scores=st.lists(QUARTERS, min_size=6, max_size=6), tau=QUARTERS, dtype=DTYPE)
def test_with_a_separate_detector_it_is_positive_exactly_where_wrong_and_accepted(rows, scores, tau, dtype):
    logits, label = logits_and_labels(rows, dtype)
    score = torch.tensor(scores[: len(rows)], dtype=dtype)
    value = WrongAndAccepted(score=lambda output: score, tau=tau, scale=2.5)(logits, label)
    for row, true, anomaly, found in zip(rows, label.tolist(), scores, value.tolist(), strict=False):
        others = min(row[k] for k in range(3) if k != true)
        assert (found > 0) == (others < row[true] and anomaly <= tau)
        assert found == pytest.approx(min((row[true] - others) / 2, (tau - anomaly) / 2.5), abs=1e-5)


@pytest.mark.parametrize(
    ("margin", "score", "expected", "slopes"),
    [
        (-2.0, 9.0, -2.0, (1, 0)),  # not fooled: the classifier alone
        (0.5, 9.0, 0.5, (1, 0)),  # fooled, but not surely
        (3.0, 9.0, 1 - 5 / 4, (0, -0.25)),  # fooled and rejected: the detector alone
        (3.0, 2.0, 1.0, (0, 0)),  # fooled and accepted: done
    ],
)
def test_the_selective_objective_turns_to_the_detector_where_the_classifier_is_fooled(margin, score, expected, slopes):
    logits = torch.tensor([[0.0, margin]], dtype=torch.float64, requires_grad=True)
    anomaly = torch.tensor([score], dtype=torch.float64, requires_grad=True)
    objective = Selective(score=lambda output: anomaly, tau=4.0, confidence=1.0)
    value = objective(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(expected, abs=1e-12)
    to_logits, to_score = torch.autograd.grad(value.sum(), (logits, anomaly), allow_unused=True)
    assert to_logits[0, 1].item() == slopes[0]
    assert to_score.item() == slopes[1]


@settings(deadline=None, max_examples=60)
@given(
    margin=QUARTERS, score=QUARTERS, tau=QUARTERS.filter(lambda t: t > 0), weight=st.floats(0.01, 100),
    confidence=st.floats(0, 5), scale=st.sampled_from([None, 0.5, 3.0]),
)  # fmt: skip
def test_the_lagrangian_weighs_what_the_formula_says(margin, score, tau, weight, confidence, scale):
    objective = Lagrangian(
        score=lambda output: torch.tensor([score], dtype=torch.float64), tau=tau, weight=weight, confidence=confidence,
        scale=scale,
    )  # fmt: skip
    value = objective(torch.tensor([[0.0, margin]], dtype=torch.float64), torch.tensor([0]))
    c = tau if scale is None else scale
    expected = min(margin, confidence) - weight * max(0.0, score - tau + 0.05 * c) / c
    assert value.item() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=200)
@given(scores=st.lists(QUARTERS, min_size=1, max_size=6), tau=QUARTERS, dtype=DTYPE)
def test_acceptance_alone_is_positive_exactly_up_to_the_threshold_whatever_the_label(scores, tau, dtype):
    output = Output(
        logits=torch.zeros(len(scores), 2, dtype=dtype), embedding=torch.zeros(len(scores), 1),
        scores={"a": torch.tensor(scores, dtype=dtype)},
    )  # fmt: skip
    value = Accepted(score=ScoreOf("a"), tau=tau, scale=2.5)(output, torch.ones(len(scores), dtype=torch.int64))
    assert (value > 0).tolist() == [score <= tau for score in scores]
    assert value.tolist() == pytest.approx([(tau - score) / 2.5 for score in scores], abs=1e-5)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(st.tuples(QUARTERS, QUARTERS), min_size=2, max_size=8), tau=QUARTERS.filter(lambda tau: tau > 0),
    dtype=DTYPE,
)  # fmt: skip
def test_fooled_first_ranks_mistakes_by_the_score_and_all_others_below_by_the_margin(rows, tau, dtype):
    margins, scores = (torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True))
    logits = torch.stack([torch.zeros_like(margins), margins], 1)
    value = FooledFirst(score=lambda output: scores, tau=tau)(logits, torch.zeros(len(rows), dtype=torch.int64))

    def rank(margin, score):
        return (1, -max(score, tau)) if margin > 0 else (0, margin)

    for one, first in zip(rows, value.tolist(), strict=True):
        assert (first > 0) == (one[0] > 0)
        for other, second in zip(rows, value.tolist(), strict=True):
            assert (first > second) == (rank(*one) > rank(*other))


@settings(deadline=None, max_examples=100)
@given(rows=DISTANCES, tau=QUARTERS.filter(lambda tau: tau > 0), dtype=DTYPE)
def test_the_best_target_of_the_targeted_forms_is_the_untargeted_ones_value(rows, tau, dtype):
    """max over t of min((tau - D_t) / c, (D_y - D_t) / c) is -h; and of min(z_t - z_y, slack) the max-form."""
    logits, label = logits_and_labels(rows, dtype)
    score = -2 * logits.amax(1)
    for targeted, whole in (
        (TargetedAndNear(tau=tau), WrongAndNear(tau=tau, margin=0)),
        (
            TargetedAndAccepted(score=lambda output: score, tau=tau),
            WrongAndAccepted(score=lambda output: score, tau=tau),
        ),
    ):
        values = torch.stack([targeted(logits, label, (label + turn) % 3) for turn in (1, 2)])
        assert torch.allclose(values.amax(0), whole(logits, label), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WrongAndNear(tau=-3.0), "scale must be > 0.*got -3.0"),
        (lambda: WrongAndNear(tau=3.0, scale=0.0), "scale must be > 0.*got 0.0"),
        (lambda: WrongAndAccepted(score=len, tau=0.0), "scale must be > 0"),
        (lambda: Selective(score=len, tau=0.0), "scale must be > 0"),
        (lambda: Accepted(score=len, tau=0.0), "scale must be > 0"),
        (lambda: FooledFirst(score=len, tau=0.0), "scale must be > 0"),
        (lambda: TargetedAndAccepted(score=len, tau=0.0), "scale must be > 0"),
        (lambda: TargetedAndNear(tau=float("inf")), "scale must be > 0.*got inf"),
        (lambda: Lagrangian(score=len, tau=0.0, weight=1.0), "scale must be > 0"),
        (lambda: Lagrangian(score=len, tau=1.0, weight=0.0), "weight must be > 0, got 0"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


class Plane(nn.Module):
    """Two pixels are the feature; classes are the nearest of given centres."""

    def __init__(self, centres):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor(centres, dtype=torch.float64))

    def forward(self, image):
        feature = image.flatten(1)
        logits = -(feature[:, None] - self.centres).square().sum(2) / 2
        return Output(logits=logits, embedding=feature)


def nearest(output):
    return -2 * output.logits.amax(1)


def test_joint_attacks_find_every_sample_that_can_be_wrong_and_accepted():
    """In the plane, solved on a fine grid: centre 1 overlaps the true centre 0, and centre 2 is apart from both."""
    model, tau = Plane([[0.3, 0.5], [0.42, 0.5], [0.8, 0.5]]), 0.04
    generator = torch.Generator().manual_seed(0)
    clean = torch.tensor([[[[0.3, 0.5]]]]).double() + 0.02 * torch.randn(30, 1, 1, 2, generator=generator).double()
    label, epsilon = torch.zeros(30, dtype=torch.int64), 0.1
    decision = WrongAndNear(tau=tau, margin=0)
    grid = torch.cartesian_prod(*[torch.linspace(-epsilon, epsilon, 201).double()] * 2).view(-1, 1, 1, 2)
    possible = torch.stack([(decision(model(x + grid), torch.zeros(len(grid)).long()) > 0).any() for x in clean])
    assert possible.all()  # every sample can be moved across the plane between the first two centres
    found = {}
    for name, objective in {
        "joint": WrongAndNear(tau=tau),
        "accepted": WrongAndAccepted(score=nearest, tau=tau),
        "selective": Selective(score=nearest, tau=tau),
    }.items():
        attack = GradientAttack(
            threat=Linf(epsilon=epsilon), step=Steepest(size="eps/10"), steps=40, objective=objective, decision=decision
        )
        image = attack(model, clean, label)
        answer = model(image)
        won = (answer.logits.argmax(1) != 0) & (nearest(answer) <= tau)
        assert torch.equal(won, decision(answer, label) > 0)
        found[name] = int(won.sum())
    assert found["joint"] == found["accepted"] == found["selective"] == 30


def test_the_decision_keeps_an_accepted_image_though_a_rejected_one_has_the_larger_margin():
    """Along a line the class turns wrong at once, but is accepted only in a narrow band about the far centre."""
    model, tau = Plane([[0.1, 0.5], [0.5, 0.5]]), 0.01**2
    clean, label = torch.tensor([[[[0.2, 0.5]]]]).double(), torch.zeros(1).long()
    attack = {
        decision: GradientAttack(
            threat=Linf(epsilon=0.6), step=Steepest(size=0.015), steps=60, objective=objective, decision=objective
        )(model, clean, label)
        for decision, objective in {"margin": Margin(), "joint": WrongAndNear(tau=tau, margin=0)}.items()
    }
    assert nearest(model(attack["joint"])).item() <= tau
    assert nearest(model(attack["margin"])).item() > tau
