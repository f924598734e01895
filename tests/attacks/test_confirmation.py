"""A search on a folded or half-precision copy must end as one on the model itself, however its logits lie."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_folding import Plain, images
from torch import nn

from robustfg.attacks import (
    FAB,
    FMN,
    L1,
    L2,
    PGD,
    BoundaryAttack,
    CarliniWagner,
    DeepFool,
    ElasticNet,
    Engine,
    HopSkipJump,
    Linf,
    Margin,
    WrongAndNear,
)
from robustfg.attacks.batch.active_batch import ActiveBatch, SearchOptions
from robustfg.attacks.batch.task import Task
from robustfg.attacks.black_box.decision_based import DecisionBased
from robustfg.attacks.runtime.engine import Run

pytestmark = pytest.mark.numeric

EXACT = Engine(fold=False)


class Moved(nn.Module):
    """A net whose logits are scaled, and shifted by the same number."""

    def __init__(self, scale=1.0, shift=0.0):
        super().__init__()
        self.inner, self.scale, self.shift = Plain().centred(), scale, shift

    def forward(self, image):
        return self.inner(image) * self.scale + self.shift


class FarCentre(nn.Module):
    """Logits -D / 2 of squared distances to centres, one of which is far away."""

    def __init__(self):
        super().__init__()
        self.features = Plain().centred()
        self.register_buffer("centres", torch.cat([torch.eye(5), torch.full((1, 5), 60.0)]))

    def forward(self, image):
        return -(self.features(image)[:, None] - self.centres).square().sum(2) / 2


MODELS = {
    "plain": Moved,
    "small": lambda: Moved(scale=1e-5),
    "shifted": lambda: Moved(scale=30.0, shift=-2e4),
    "far centre": FarCentre,
}
PENALTY = {"searches": 4, "steps": 12, "early_abort": False}
ATTACKS = {
    "fab": FAB(threat=Linf(epsilon=0.006), steps=8),
    "deepfool": DeepFool(threat=L2(epsilon=0.06), steps=20),
    "fmn": FMN(threat=L2(epsilon=0.06), steps=15),
    "cw": CarliniWagner(threat=L2(epsilon=0.12), initial_constant=10, **PENALTY),
    "ead": ElasticNet(threat=L1(epsilon=2.38), initial_constant=10, learning_rate=0.05, **PENALTY),
    "boundary": BoundaryAttack(threat=L2(epsilon=4), queries=150, seed=1),
    "hsj": HopSkipJump(threat=L2(epsilon=0.5), queries=150, first_queries=20),
}


def attacked(model, attack, count=12):
    """An attempt, and whom its images fool by the model's own account."""
    clean = images(count, seed=1)
    with torch.no_grad():
        label = model(clean).argmax(1)
        attempt = list(attack.attempts(model, clean, label))[-1]
        return attempt, model(attempt.image).argmax(1) != label


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_search_on_the_copy_breaks_whom_one_on_the_model_breaks_wherever_the_logits_lie(model, attack):
    model = model().eval()
    if isinstance(model, Moved) and isinstance(attack, CarliniWagner | ElasticNet):
        attack = replace(attack, initial_constant=attack.initial_constant / model.scale)
    attempt, fooled = attacked(model, attack)
    _, expected = attacked(model, replace(attack, engine=EXACT))
    assert 2 < expected.sum() < 12
    chaotic = isinstance(attack, DecisionBased)  # a query that falls the other way sends it elsewhere
    assert (fooled != expected).sum() <= (1 if chaotic else 0)
    seen = ~attempt.margin.isnan()
    assert torch.equal(attempt.margin[seen] < 0, fooled[seen])


class Off(nn.Module):
    """A copy that favours class 0 by a little."""

    def __init__(self, model, by):
        super().__init__()
        self.model, self.by = model, by

    def forward(self, image):
        return self.model(image) + torch.tensor([self.by, 0.0, 0.0], dtype=image.dtype)


class Brightness(nn.Module):
    """The margin of class 0 is a multiple of how much darker than grey an image is; the third class is far."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, image):
        score = self.scale * (0.5 - image.flatten(1).mean(1))
        return torch.stack([score, 0 * score, 0 * score - 10], 1)


def grey(*levels):
    return torch.tensor(levels, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 4, 4).clone()


def active_batch_of(clean, by=0.01, **options):
    model, label = Brightness(1.0), torch.zeros(len(clean), dtype=torch.int64)
    run = Run(Engine(), model, surrogate=Off(model, by))
    run(clean)  # the first question is answered by the model itself
    task = Task.of(clean, label, None, draw=0, logits=None)
    return ActiveBatch(run, task, threat=Linf(epsilon=1), decision=Margin(), **options)


@pytest.mark.parametrize("by", [-0.01, 0.01])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_copys_success_counts_if_the_model_confirms_it_and_one_that_it_has_not_seen_is_found_at_the_end(by, steps):
    clean = grey(0.2, 0.495, 0.505, 0.8)
    batch = active_batch_of(clean, by)
    _, margin = batch.evaluate(clean)
    unseen = by > 0  # the copy calls the third one right, else the second one wrong
    assert (margin < 0).tolist() == [False, not unseen, not unseen, True]
    for _ in range(steps):
        batch.drop_fooled()
        assert len(batch) == (3 if unseen else 2)
    found = batch.results()
    assert (found.margin < 0).tolist() == [False, False, True, True]
    assert found.first_success.tolist() == [-1, -1, int(unseen), 0]
    denied = steps * (not unseen)  # asked where samples are dropped, and again before the round ends
    assert found.forwards.tolist() == [2, 2 + denied, 2, 2]


def test_a_sample_whose_success_is_denied_is_attacked_again_and_at_the_end_of_a_round_misjudged():
    clean = grey(0.2, 0.495)
    batch = active_batch_of(clean, -0.01)
    batch.evaluate(clean)
    assert batch.drop_fooled(torch.arange(2))[0].tolist() == [0, 1]
    assert not batch.surrogate_differs.any()  # by so little that it may be rounding
    batch.evaluate(grey(0.3, 0.8))
    assert len(batch.drop_fooled(torch.arange(2))[0]) == 1
    assert (batch.results().margin < 0).tolist() == [False, True]
    batch = active_batch_of(clean, -0.01)
    batch.evaluate(clean)
    batch.results()
    assert batch.surrogate_differs.tolist() == [False, True]


def test_a_sample_that_the_attack_itself_ends_is_confirmed_too():
    clean = grey(0.2, 0.505, 0.8)
    batch = active_batch_of(clean, 0.01)
    batch.evaluate(clean)
    batch.select(torch.tensor([True, False, True]))
    found = batch.results()
    assert (found.margin < 0).tolist() == [False, True, True]
    assert found.forwards.tolist() == [2, 2, 2]


def test_margins_are_the_models_own_wherever_it_was_asked():
    clean = grey(0.47, 0.505, 0.8)
    batch = active_batch_of(clean, -0.01)
    batch.evaluate(clean)
    assert batch.results().margin.tolist() == pytest.approx([0.03, -0.005, -0.3], abs=1e-6)


def test_asking_the_model_itself_is_a_pass_of_those_samples_only():
    clean = grey(0.2, 0.495, 0.8)
    batch = active_batch_of(clean, -0.01)
    batch.evaluate(clean)
    batch.evaluate(clean[[1, 1, 0]], torch.tensor([1, 1, 0]))
    assert batch.results().forwards.tolist() == [3, 4, 2]


def test_where_a_copy_answers_otherwise_it_is_given_up_and_the_sample_misjudged():
    clean = grey(0.2, 0.4, 0.8)
    batch = active_batch_of(clean, -0.15)
    assert batch.run.surrogate_used is False
    batch.evaluate(clean)
    assert batch.run.surrogate_used
    batch.drop_fooled()
    assert batch.surrogate_differs.tolist() == [
        False,
        True,
        True,
    ]  # the model is asked about the copy's successes
    batch.evaluate(clean[:2])
    assert batch.run.by_model


def test_images_that_are_kept_to_the_end_are_compared_too():
    clean = grey(0.2, 0.4, 0.8)
    batch = active_batch_of(clean, -0.15, options=SearchOptions(keep_fooled=True))
    batch.gradient(clean, Margin())
    batch.drop_fooled()
    batch.set_result(clean)
    found = batch.results()
    assert batch.surrogate_differs.all()
    assert found.margin.isnan().all()
    assert torch.equal(found.image, clean)
    assert found.forwards.tolist() == [2, 2, 2]


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
@pytest.mark.parametrize("shift", [0.0, -20.0])
def test_in_half_precision_too_whoever_is_told_fooled_is_and_all_others_get_the_next_restart(autocast, shift):
    model = Moved(scale=30.0, shift=shift).eval()
    attack = replace(PGD(epsilon="1/255", steps=5, restarts=3), engine=Engine(autocast=autocast))
    clean = images(48, seed=1)
    with torch.no_grad():
        label = model(clean).argmax(1)
        attempts = list(attack.attempts(model, clean, label))
        for before, after in pairwise(attempts):
            right = model(before.image).argmax(1) == label
            assert 0 < right.sum() < 48
            assert torch.equal(before.margin >= 0, right)
            assert torch.equal(after.forwards > 0, right)


def test_a_joint_decision_of_another_unit_is_decided_by_the_model_itself():
    model = FarCentre().eval()
    attack = FMN(threat=L2(epsilon=0.06), steps=15, stop_inside=False, decision=WrongAndNear(tau=10.0, margin=0))
    told, _ = attacked(model, attack)
    clean = images(12, seed=1)
    with torch.no_grad():
        won = attack.decision(model(told.image), model(clean).argmax(1)) > 0
    seen = ~told.margin.isnan()
    assert won[seen].any()
    assert torch.equal(told.margin[seen] < 0, won[seen])
