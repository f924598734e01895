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
from robustfg.attacks.base import Task
from robustfg.attacks.decision_based import DecisionBased
from robustfg.attacks.engine import Run
from robustfg.attacks.referee import Referee
from robustfg.attacks.victim import Victim

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
        return self.model(image) + torch.tensor([self.by, 0.0], dtype=image.dtype)


class Brightness(nn.Module):
    """The margin of class 0 is a multiple of how much darker than grey an image is."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, image):
        score = self.scale * (0.5 - image.flatten(1).mean(1))
        return torch.stack([score, 0 * score], 1)


def grey(*levels):
    return torch.tensor(levels, dtype=torch.float64)[:, None, None, None].expand(-1, 3, 4, 4).clone()


def referee_of(by, scale):
    model = Brightness(scale)
    return Referee(Run(Engine(), Off(model, by * scale), model))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("by", [-0.01, 0.01])
def test_the_model_itself_decides_where_the_copy_may_be_wrong_and_is_not_asked_elsewhere(by, scale):
    referee, label = referee_of(by, scale), torch.zeros(5, dtype=torch.int64)
    image = grey(0.2, 0.495, 0.505, 0.8, 0.5 - 0.07)
    output = referee.run(image)
    margins, asked = referee.margins(image, output, label, Margin())
    assert (margins < 0).tolist() == [False, False, True, True, False]
    assert asked.tolist() == [False, True, True, False, True]  # eight times 0.01 is the band


def test_a_margin_on_whose_sign_both_agree_stays_the_copys():
    referee, label = referee_of(0.01, 1.0), torch.zeros(2, dtype=torch.int64)
    image = grey(0.47, 0.505)
    margins, asked = referee.margins(image, referee.run(image), label, Margin())
    assert asked.all()
    assert margins.tolist() == pytest.approx([0.04, -0.005], abs=1e-12)


def test_the_band_is_in_the_units_of_the_decision():
    class Hundredth:
        name = "hundredth"

        def __call__(self, output, label):
            return Margin()(output, label) / 100

    referee, label = referee_of(0.01, 1.0), torch.zeros(2, dtype=torch.int64)
    image = grey(0.495, 0.3)
    _, asked = referee.margins(image, referee.run(image), label, Hundredth())
    assert asked.tolist() == [True, False]
    assert referee.doubt(referee.run(image)).tolist() == pytest.approx([0.02, 0.02])  # of logits


def test_a_class_far_off_leaves_no_more_open():
    model = Brightness(1.0)

    def far(image):
        near = model(image).float()
        return torch.cat([near, near[:, :1] - 1e5], 1)

    referee = Referee(Run(Engine(), lambda image: far(image), far))
    image, label = grey(0.49, 0.51), torch.zeros(2, dtype=torch.int64)
    assert referee.margins(image, far(image), label, Margin())[1] is None


def test_asking_the_model_itself_is_a_pass_of_those_samples_only():
    model = Brightness(1.0)
    clean, label = grey(0.2, 0.495, 0.8), torch.zeros(3, dtype=torch.int64)
    task = Task.of(clean, label, None, draw=0, logits=None)
    victim = Victim(Run(Engine(), Off(model, 0.01), model), task, threat=Linf(epsilon=1), decision=Margin())
    victim.look(clean)
    assert victim.results()[3].tolist() == [1, 2, 1]
    victim.look(clean[[1, 1, 0]], torch.tensor([1, 1, 0]))
    assert victim.results()[3].tolist() == [2, 6, 1]


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


@pytest.mark.parametrize("size", [1, 3, 5])
def test_whom_the_model_is_asked_about_does_not_depend_on_who_else_is_there(size):
    class Uneven(Off):
        """Errs more on brighter images."""

        def forward(self, image):
            return self.model(image) + torch.stack([self.by * image.flatten(1).mean(1), 0 * image[:, 0, 0, 0]], 1)

    image, label = grey(0.9, 0.51, 0.49, 0.2, 0.45), torch.zeros(5, dtype=torch.int64)
    model = Brightness(1.0)
    found = []
    for part in (slice(None), slice(size), slice(5 - size, None)):
        referee = Referee(Run(Engine(), Uneven(model, 0.01), model))
        _, asked = referee.margins(image[part], referee.run(image[part]), label[part], Margin())
        found.append(torch.zeros(len(image[part]), dtype=torch.bool) if asked is None else asked)
    assert found[0].any()
    assert torch.equal(found[1], found[0][:size])
    assert torch.equal(found[2], found[0][5 - size :])
