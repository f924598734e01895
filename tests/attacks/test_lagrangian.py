import json

import pytest
import torch
from test_against_detector import CLEAN, EPSILON, GRID, LABEL, LOWEST, TAU, least, watched

from robustfg.attacks import GradientAttack, Lagrangian, LagrangianSearch, Linf, ScoreOf, WrongAndAccepted
from robustfg.attacks.detector_aware.lagrangian import Weighed, Weights
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric

APART = ScoreOf("apart")
WEIGHED = Lagrangian(score=APART, tau=LOWEST, scale=TAU, weight=1.0)
NEVER = WrongAndAccepted(score=APART, tau=-1.0, scale=TAU)


def attack(**options):
    settings = {"threat": Linf(epsilon=EPSILON), "objective": WEIGHED, "steps": 20, "decision": NEVER}
    return LagrangianSearch(**(settings | options))


def naive_weights(answers, first=1.0):
    """The weights tried, given which of them the classifier gives in to."""
    weight, lower, upper, tried = first, None, None, []
    for _ in range(9):
        tried.append(weight)
        if answers(weight):
            lower = weight if lower is None else max(lower, weight)
        else:
            upper = weight if upper is None else min(upper, weight)
        if lower is not None and upper is not None:
            weight = (lower * upper) ** 0.5
        else:
            weight = min(weight * 10, 100.0) if lower is not None else max(weight / 10, 0.01)
    return tried


@pytest.mark.parametrize("turning", [1e-5, 0.02, 0.3, 1.0, 7.0, 40.0, 1e5])
def test_the_weights_close_in_on_the_one_at_which_the_classifier_just_gives_in(turning):
    weights = Weights(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 0.0, float("inf"))))
    tried = []
    for _ in range(9):
        tried.append(weights.weight.item())
        weights = weights.after(weights.weight <= turning)
    assert tried == pytest.approx(naive_weights(lambda weight: weight <= turning))
    assert min(tried) >= 0.01
    assert max(tried) <= 100
    expected = min(max(turning, 0.01), 100.0)
    assert abs(torch.tensor(tried[-1] / expected).log10()) < 0.05


def test_every_sample_is_weighed_by_itself():
    output = watched()(CLEAN)
    weight = torch.linspace(0.1, 10, len(CLEAN)).double()
    together = Weighed(WEIGHED, weight)(output, LABEL)
    for row in range(len(CLEAN)):
        alone = Lagrangian(score=APART, tau=LOWEST, scale=TAU, weight=weight[row].item())
        assert together[row].item() == pytest.approx(alone(output, LABEL)[row].item(), abs=1e-12)


def test_it_spends_so_many_climbs_of_so_many_steps():
    (attempt,) = attack(searches=3, steps=5).attempts(watched(), CLEAN, LABEL)
    assert attempt.forwards.tolist() == [18] * len(CLEAN)
    assert attempt.backwards.tolist() == [15] * len(CLEAN)
    assert attack(searches=3, steps=5, restarts=2).passes == 36


def test_samples_leave_when_they_are_won_and_the_others_go_on():
    goal = WrongAndAccepted(score=APART, tau=TAU, scale=TAU)
    (attempt,) = attack(decision=goal, searches=3, steps=10).attempts(watched(), CLEAN, LABEL)
    won = attempt.margin < 0
    assert 3 < won.sum() < len(CLEAN) - 3
    assert (attempt.forwards[~won] == 33).all()
    assert (attempt.forwards[won] < 33).any()


def test_searched_weights_find_less_suspicious_mistakes_than_any_one_weight_for_all():
    """Nine weights of its own get every sample nearer to the grid's optimum than each of nine fixed ones."""
    found = least(attack(watch=APART), watched(), CLEAN, LABEL)
    grid = GRID["apart"]
    reachable = grid.isfinite() & (grid > LOWEST)
    assert torch.equal(found.isfinite(), grid.isfinite())
    excess = (found - grid)[reachable].mean()
    for weight in (0.01, 0.1, 1.0, 10.0, 100.0):
        fixed = Lagrangian(score=APART, tau=LOWEST, scale=TAU, weight=weight)
        single = GradientAttack(
            threat=Linf(epsilon=EPSILON), objective=fixed, decision=NEVER, watch=APART, steps=180
        )  # fmt: skip
        other = least(single, watched(), CLEAN, LABEL)
        assert not (other - grid)[reachable].mean() < excess


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"searches": 0}, "searches must be >= 1, got 0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"size": "0"}, "size must be > 0, got 0"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        attack(**options)


def test_the_description_is_plain():
    described = json.loads(json.dumps(attack().shown()))
    assert described["searches"] == 9
    assert described["lagrangian"]["tau"] == LOWEST
