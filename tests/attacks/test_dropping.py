"""Dropping now and then, as on a GPU: nothing else is found or counted than by dropping at every step."""

from dataclasses import replace

import pytest
import torch
from one_of_each import ATTACKS, BALL, LABEL, Embedding
from small import INDEX
from small import images as float64_images
from test_folding import Plain, images
from test_lowest_score import FAR, named, watched

from robustfg.attacks import APGD, Cascade, Engine, GradientAttack, Linf, Square


@pytest.fixture
def rarely(monkeypatch):
    """Switches to dropping every few steps."""

    def begin(period=8):
        monkeypatch.setattr("robustfg.attacks.batch.active_batch.steps_between_drops", lambda device: period)

    return begin


def last(attack, model, *samples):
    *_, attempt = attack.attempts(model, *samples)
    return attempt


@pytest.mark.parametrize("period", [3, 8])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_images_and_counts_are_those_of_dropping_at_every_step(attack, period, rarely):
    model, clean = Embedding(), float64_images()
    at_once = last(attack, model, clean, LABEL, INDEX)
    rarely(period)
    late = last(attack, model, clean, LABEL, INDEX)
    for column in ("forwards", "backwards", "first_success", "dead_gradient"):
        assert torch.equal(getattr(at_once, column), getattr(late, column)), column
    assert torch.allclose(at_once.image, late.image, rtol=0, atol=1e-12)
    assert torch.allclose(at_once.margin, late.margin, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", [GradientAttack, Square])
def test_so_is_the_lowest_score(kind, rarely):
    clean = named()
    budget = {"queries": 60} if kind is Square else {"steps": 12}
    attack = kind(threat=BALL.__class__(epsilon=0.2), watch=FAR, **budget)
    label = torch.zeros(len(clean), dtype=torch.int64)
    at_once = last(attack, watched(), clean[..., :2], label)
    rarely()
    late = last(attack, watched(), clean[..., :2], label)
    assert torch.allclose(at_once.least, late.least, rtol=0, atol=1e-12)  # other batch sizes, other sums
    assert at_once.least.isfinite().any()


class Askew(torch.nn.Module):
    """A copy that rounds its answers coarsely."""

    def __init__(self, model, unit=3e-4):
        super().__init__()
        self.model, self.unit = model, unit

    def forward(self, image):
        logits = self.model(image)
        return logits + ((logits / self.unit).round() * self.unit - logits).detach()


@pytest.mark.parametrize("unit", [3e-4, 3e-3, None])
@pytest.mark.parametrize("kind", [GradientAttack, APGD, Square])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_no_success_is_lost_that_a_copy_leaves_open(unit, kind, length, rarely, monkeypatch):
    model, image = Plain().centred(), images(100)
    label = model(image).argmax(1)
    budget = {"queries": 6 * length} if kind is Square else {"steps": length}
    attack = kind(threat=Linf(epsilon="1/255"), engine=Engine(autocast=None if unit else "bfloat16"), **budget)
    if unit:
        askew = lambda model, image: (model(image), Askew(model, unit))  # noqa: E731
        monkeypatch.setattr("robustfg.attacks.runtime.engine.folded", askew)
    at_once = last(attack, model, image, label)
    rarely(4)
    late = last(attack, model, image, label)
    assert torch.equal(late.margin < 0, model(late.image).argmax(1) != label)
    assert (at_once.margin < 0).any() or kind is Square
    lost = (at_once.margin < 0) & ~(late.margin < 0)
    assert lost.sum() <= (kind is Square)  # which goes elsewhere after a margin that a copy has a little wrong
    exact = last(replace(attack, engine=Engine(fold=False)), model, image, label)
    assert (late.first_success[late.margin < 0] < late.forwards[late.margin < 0]).all()
    if length == 1 and kind is GradientAttack:
        both = (late.margin < 0) & (exact.margin < 0)
        assert torch.equal(late.first_success[both], exact.first_success[both])


@pytest.mark.parametrize("make", [GradientAttack, APGD, Square])
def test_whom_a_copy_leaves_open_the_model_itself_is_asked_about_before_they_go(make, rarely, monkeypatch):
    model, image = Plain().centred(), images(40)
    label, asked = model(image).argmax(1), []
    budget = {"queries": 60} if make is Square else {"steps": 10}
    monkeypatch.setattr("robustfg.attacks.runtime.engine.folded", lambda model, image: (model(image), Askew(model)))
    model.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    attack = make(threat=Linf(epsilon="0.7/255"), **budget)
    rarely()
    attempt = last(attack, model, image, label)
    fooled = model(attempt.image).argmax(1) != label
    assert 0 < fooled.sum() < 40
    assert torch.equal(attempt.margin < 0, fooled)
    assert torch.equal(attempt.first_success >= 0, fooled)
    eager = last(replace(attack, engine=Engine(fold=False)), model, image, label)
    assert ((eager.margin < 0) != fooled).sum() <= 2


def test_suites_go_on_where_the_attacks_before_them_stopped(rarely):
    model, image = Plain().centred(), images(20)
    label = model(image).argmax(1)
    suite = Cascade(
        attacks={
            "short": GradientAttack(threat=Linf(epsilon="0.7/255"), steps=3),
            "long": APGD(threat=Linf(epsilon="0.7/255"), steps=10, name="long"),
        }
    )
    at_once = last(suite, model, image, label)
    rarely()
    late = last(suite, model, image, label)
    assert torch.equal(at_once.margin < 0, late.margin < 0)
    assert 0 < (late.margin < 0).sum() < 20
