"""The least reading among wrong answers, against a naive look at all that was asked."""

import itertools
from dataclasses import replace

import pytest
import torch
from test_against_detector import CLEAN, EPSILON, LABEL, TAU, Plane, least, samples, suite, watched
from test_folding import Plain, images
from torch import nn

from robustfg.attacks import (
    FMN,
    L2,
    PGD,
    BoundaryAttack,
    CarliniWagner,
    Cascade,
    Engine,
    EstimatedGradient,
    GradientAttack,
    HopSkipJump,
    Linf,
    Nesterov,
    ScoreOf,
    SelectivePGD,
    Square,
    Transfer,
    WrongAndAccepted,
)
from robustfg.core.errors import UserError
from robustfg.core.types import Output

pytestmark = pytest.mark.numeric

FAR = ScoreOf("far")
GOAL = WrongAndAccepted(score=FAR, tau=TAU / 3, scale=TAU)
BALL = Linf(epsilon=EPSILON)


class Log(nn.Module):
    """Remembers every image asked about and its answer; samples are known by their third pixel, which stays."""

    def __init__(self):
        super().__init__()
        self.inner, self.asked = watched(), []

    def forward(self, image):
        output = self.inner(image[..., :2])
        scores = output.scores["far"].tolist()
        fixed = image[..., 2].flatten()
        for row in range(len(image)):
            wrong = int(output.logits[row].argmax()) != 0
            self.asked.append((fixed[row].item(), image[row].detach(), wrong, scores[row]))
        return output


def naive_least(attack, clean):
    """Of every sample, from all that was asked within the ball; samples are told apart by a pixel near their own."""
    log = Log()
    attempts = list(attack.attempts(log, clean, LABEL[: len(clean)]))
    found = [float("inf")] * len(clean)
    for fixed, image, wrong, score in log.asked:
        sample = min(range(len(clean)), key=lambda row: abs(clean[row, 0, 0, 2].item() - fixed))
        inside = attack.threat.size((image - clean[sample])[None]).item() <= attack.threat.radius + 1e-9
        if wrong and inside:
            found[sample] = min(found[sample], score)
    return attempts, found


def named():
    """Samples whose third pixel, which the model does not see, tells them apart: farther than the ball is wide."""
    clean = CLEAN[[1, 4, 5, 2]]  # the first three can be fooled
    place = torch.linspace(0.0, 1.0, 4, dtype=torch.float64).view(-1, 1, 1, 1)
    return torch.cat([clean, place], 3)


ATTACKS = {
    "pgd": GradientAttack(threat=BALL, steps=12),
    "pgd, last iterate": GradientAttack(threat=BALL, steps=12, last_iterate=True),
    "pgd, restarts": GradientAttack(threat=BALL, steps=6, random_start=True, restarts=3, decision=GOAL),
    "nesterov": GradientAttack(threat=BALL, steps=12, step=Nesterov(size="eps/3"), last_iterate=True),
    "square": Square(threat=BALL, queries=60, decision=GOAL),
    "estimated": EstimatedGradient(threat=BALL, steps=5, samples=6, deviation=0.03, decision=GOAL),
    "estimated, leaving": EstimatedGradient(threat=BALL, steps=8, samples=4, deviation=0.03, random_start=True),
    "cascade": Cascade(
        attacks={
            "short": GradientAttack(threat=BALL, steps=3, decision=GOAL, watch=FAR),
            "long": GradientAttack(threat=BALL, steps=9, random_start=True, decision=GOAL, watch=FAR, restarts=2),
        }
    ),
    "fmn": FMN(threat=L2(epsilon=EPSILON), steps=15),
    "fmn, to the end": FMN(threat=L2(epsilon=EPSILON), steps=15, stop_inside=False),
    "cw": CarliniWagner(threat=L2(epsilon=EPSILON), initial_constant=1.0, searches=3, steps=15),
    "boundary": BoundaryAttack(threat=L2(epsilon=EPSILON), queries=120),
    "hop skip jump": HopSkipJump(threat=L2(epsilon=EPSILON), queries=80, first_queries=10),
} | {name: attack for name, attack in suite(watched(), steps=5).items() if "features" not in name}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_least_is_that_of_all_wrong_answers_within_the_ball(attack):
    clean = named()
    if not isinstance(attack, Cascade):
        attack = replace(attack, watch=FAR)
    attempts, expected = naive_least(attack, clean)
    assert attempts[-1].least.tolist() == pytest.approx(expected, abs=1e-12)
    for earlier, later in itertools.pairwise(attempts):
        assert (later.least <= earlier.least).all()


def test_some_of_these_are_finite_and_some_are_not():
    _, expected = naive_least(replace(ATTACKS["pgd"], watch=FAR), named())
    assert 0 < sum(value < float("inf") for value in expected) < 4


@pytest.mark.parametrize("name", ["pgd", "pgd, last iterate", "pgd, restarts", "square", "estimated", "fmn"])
def test_watching_changes_nothing_that_is_asked_or_counted(name):
    clean, label = samples(12)
    without = list(ATTACKS[name].attempts(watched(), clean, label))
    watching = list(replace(ATTACKS[name], watch=FAR).attempts(watched(), clean, label))
    for before, after in zip(without, watching, strict=True):
        assert before.least is None
        for column in ("forwards", "backwards", "first_success", "dead_gradient"):
            assert torch.equal(getattr(before, column), getattr(after, column)), column
        won = before.margin < 0
        assert torch.equal(won, after.margin < 0)
        assert torch.equal(before.image[won], after.image[won])


def test_the_image_told_is_the_one_at_which_the_least_was_seen():
    """Unless the decision is won: so a row's own score shows what is claimed."""
    model = watched()
    attack = GradientAttack(threat=BALL, steps=30, decision=GOAL, watch=FAR)
    (attempt,) = attack.attempts(model, CLEAN, LABEL)
    shown = attempt.least.isfinite() & ~(attempt.margin < 0)
    assert shown.sum() > 5
    with torch.no_grad():
        output = model(attempt.image)
    assert (output.logits.argmax(1) != 0)[shown].all()
    assert torch.allclose(output.scores["far"][shown], attempt.least[shown], rtol=0, atol=1e-12)
    assert torch.allclose(-GOAL(output, LABEL)[shown], attempt.margin[shown], rtol=0, atol=1e-12)


def test_a_lower_decision_threshold_lets_the_search_go_on():
    goal = WrongAndAccepted(score=FAR, tau=TAU, scale=TAU)
    attack = SelectivePGD(threat=BALL, steps=40, score=FAR, decision=goal, watch=FAR)
    stops = least(attack, watched(), CLEAN, LABEL)
    goes_on = least(replace(attack, decision=replace(goal, tau=TAU / 9)), watched(), CLEAN, LABEL)
    assert (goes_on <= stops).all()
    assert (goes_on < stops - TAU / 20).sum() > 5


def test_a_max_form_that_aims_at_a_threshold_out_of_reach_stays_right():
    """It trades the mistake for the score: so the suite aims at the reported threshold, too."""
    found = {}
    for tau in (TAU, TAU / 9):
        goal = WrongAndAccepted(score=FAR, tau=tau, scale=TAU)
        attack = GradientAttack(threat=BALL, steps=40, objective=goal, decision=goal, watch=FAR)
        found[tau] = least(attack, watched(), CLEAN, LABEL) <= TAU
    assert found[TAU].sum() > found[TAU / 9].sum() + 5


def test_of_a_transfer_only_the_attacked_models_own_answers_count():
    model = watched()
    crafting = GradientAttack(threat=BALL, steps=8, random_start=True, restarts=3, last_iterate=True)
    attack = Transfer(attack=crafting, surrogate=Plane(), surrogate_name="twin", decision=GOAL, watch=FAR)
    known = torch.full((len(CLEAN),), torch.inf, dtype=torch.float64)
    for attempt in attack.attempts(model, CLEAN, LABEL):
        with torch.no_grad():
            output = model(attempt.image)
        known = torch.minimum(known, output.scores["far"].masked_fill(output.logits.argmax(1) == 0, torch.inf))
        assert torch.allclose(attempt.least, known, rtol=0, atol=1e-12)
        assert torch.equal(attempt.margin < 0, GOAL(output, LABEL) > 0)
    assert known.isfinite().any()


def test_stages_that_watch_different_readings_are_no_cascade():
    attack = GradientAttack(threat=BALL)
    with pytest.raises(UserError, match="same watch"):
        Cascade(attacks={"a": attack, "b": replace(attack, watch=FAR)})


# --- On a private copy


class Spread(nn.Module):
    """A network with batch norms, watched by minus its largest logit."""

    def __init__(self):
        super().__init__()
        self.inner = Plain().centred()

    def forward(self, image):
        logits = self.inner(image)
        return Output(logits=logits, embedding=logits, scores={"far": -logits.amax(1)})


@pytest.mark.parametrize("engine", [Engine(), Engine(autocast="bfloat16")], ids=["folded", "half precision"])
def test_what_is_watched_is_the_models_own_word_whatever_the_engine(engine):
    model, clean = Spread().eval(), images(24, seed=1)
    with torch.no_grad():
        label = model(clean).logits.argmax(1)
    goal = WrongAndAccepted(score=FAR, tau=-100.0, scale=1.0)
    attack = replace(PGD(epsilon="1/255", steps=5, restarts=2), engine=engine, decision=goal, watch=FAR)
    exact = replace(attack, engine=Engine(fold=False))
    for attempt, other in zip(attack.attempts(model, clean, label), exact.attempts(model, clean, label), strict=True):
        assert torch.allclose(attempt.least, other.least, rtol=0, atol=1e-5)
        assert torch.equal(attempt.forwards, other.forwards)
    assert 0 < attempt.least.isfinite().sum() < 24
