import json
import math

import pytest
import torch
from test_against_detector import CLEAN, EPSILON, LABEL, TAU, watched
from torch import nn

from robustfg.attacks import L1, L2, Linf, ScoreOf, SelectivePGD, WrongAndAccepted
from robustfg.core.errors import UserError
from robustfg.core.types import Output

GOAL = WrongAndAccepted(score=ScoreOf("apart"), tau=-1.0, scale=TAU)  # out of reach: nobody leaves


class Counted(nn.Module):
    """Counts forward passes."""

    def __init__(self):
        super().__init__()
        self.inner, self.asked = watched(), []

    def forward(self, image):
        self.asked.append(image.detach())
        return self.inner(image)


def attack(**options):
    settings = {"threat": Linf(epsilon=EPSILON), "score": ScoreOf("apart"), "steps": 9, "decision": GOAL}
    return SelectivePGD(**(settings | options))


def gradients(image):
    """Of the margin and of minus the score, and whether the class is wrong, of one sample, by hand."""
    model = watched()
    plane = model.classifier
    weight, centres = plane.weight.detach(), plane.centres.detach()
    feature = weight @ image.flatten()
    distance = (feature - centres).square().sum(1)
    rival = 1 + int(distance[1:].argmin())
    margin = ((centres[rival] - centres[0]) @ weight).view_as(image)
    hidden = (-2 * (feature - model.detectors["apart"].mean) @ weight).view_as(image)
    return margin, hidden, bool(distance[rival] < distance[0])


def lengths(steps, first):
    return [first * (1 + math.cos(math.pi * taken / steps)) / 2 for taken in range(steps)]


def test_selective_steps_are_those_of_a_naive_loop():
    model = Counted()
    (attempt,) = attack().attempts(model, CLEAN, LABEL)
    switched = 0
    for row in range(len(CLEAN)):
        current = CLEAN[row]
        for taken, length in enumerate(lengths(9, EPSILON / 4)):
            assert torch.allclose(model.asked[taken][row], current, rtol=0, atol=1e-12)
            margin, hidden, fooled = gradients(current)
            switched += fooled
            step = length * (hidden if fooled else margin).sign()
            current = (CLEAN[row] + (current + step - CLEAN[row]).clamp(-EPSILON, EPSILON)).clamp(0, 1)
        assert torch.allclose(model.asked[9][row], current, rtol=0, atol=1e-12)
    assert 20 < switched < 9 * len(CLEAN) - 20
    assert attempt.forwards.tolist() == [10] * len(CLEAN)
    assert attempt.backwards.tolist() == [9] * len(CLEAN)
    assert len(model.asked) == attack().passes == 10


def test_orthogonal_steps_in_l2_are_those_of_a_naive_loop_and_count_two_backward_passes():
    model = Counted()
    (attempt,) = attack(orthogonal=True, threat=L2(epsilon=EPSILON)).attempts(model, CLEAN, LABEL)
    for row in range(len(CLEAN)):
        current = CLEAN[row]
        for taken, length in enumerate(lengths(9, EPSILON / 4)):
            assert torch.allclose(model.asked[taken][row], current, rtol=0, atol=1e-9)
            margin, hidden, fooled = gradients(current)
            along, across = (hidden, margin) if fooled else (margin, hidden)
            rest = along - (along * across).sum() / across.square().sum() * across
            change = current + length * rest / rest.norm() - CLEAN[row]
            current = (CLEAN[row] + change * min(1.0, EPSILON / change.norm())).clamp(0, 1)
    assert attempt.forwards.tolist() == [10] * len(CLEAN)
    assert attempt.backwards.tolist() == [18] * len(CLEAN)


class Wide(nn.Module):
    """Margin and score are linear in 48 pixels, at an angle to each other."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.margin, self.suspicion = torch.randn(2, 48, generator=generator, dtype=torch.float64)

    def forward(self, image):
        flat = image.flatten(1) - 0.5
        gain = flat @ self.margin - 0.5
        return Output(logits=torch.stack([-gain, gain], 1) / 2, embedding=flat, scores={"line": flat @ self.suspicion})


def test_orthogonal_steps_in_linf_leave_the_other_function_where_it_is():
    """Both are linear, so to first order is exactly: until it is fooled, the score stays; after that, the margin."""
    model, seen = Wide(), []

    def watching(image):
        output = model(image)
        seen.append((output.logits[:, 1] - output.logits[:, 0], output.scores["line"]))
        return output

    clean = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    goal = WrongAndAccepted(score=ScoreOf("line"), tau=-100.0, scale=1.0)
    by_steps = SelectivePGD(
        threat=Linf(epsilon=0.1), score=ScoreOf("line"), steps=30, orthogonal=True, decision=goal, size="eps/8"
    )
    next(by_steps.attempts(watching, clean, torch.zeros(1, dtype=torch.int64)))
    margins, scores = (torch.cat(values).detach() for values in zip(*seen, strict=True))
    fooled = margins[:-1] > 0
    assert 0 < fooled.sum() < 30
    assert (scores.diff()[~fooled].abs() < 1e-9).all()
    assert (margins.diff()[fooled].abs() < 1e-9).all()
    assert (margins.diff()[~fooled] > 1e-3).all()
    assert scores[-1] < scores[0] - 0.5


def test_the_confidence_moves_the_turn_from_classifier_to_detector():
    model, goal = Wide(), WrongAndAccepted(score=ScoreOf("line"), tau=-100.0, scale=1.0)
    clean, label = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    reached = []
    for confidence in (0.0, 0.5):
        by_steps = SelectivePGD(
            threat=Linf(epsilon=0.1), score=ScoreOf("line"), steps=40, orthogonal=True, decision=goal,
            confidence=confidence, watch=ScoreOf("line"),
        )  # fmt: skip
        logits = model(by_steps(model, clean, label)).logits
        reached.append((logits[0, 1] - logits[0, 0]).item())
    assert 0 < reached[0] < 0.5 < reached[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"size": 0.0}, "size must be > 0, got 0.0"),
        ({"orthogonal": True, "threat": L1(epsilon=1.0)}, "linf and l2 threats, got l1"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        attack(**options)


def test_the_description_is_plain():
    described = json.loads(json.dumps(attack(orthogonal=True, watch=ScoreOf("apart")).shown()))
    assert described["objective"] == "margin orthogonal to detector"
    assert described["score"]["name"] == described["watch"]["name"] == "apart"
