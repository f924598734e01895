"""What ``Engine.samples`` means to every way of asking: answers are averaged, and every pass is counted."""

from dataclasses import replace

import pytest
import torch
from test_gradient import INDEX, LABEL, Net, images
from torch import nn

from robustfg.attacks import (
    APGD,
    FAB,
    L2,
    CrossEntropy,
    DeepFool,
    Engine,
    EstimatedGradient,
    FeatureAttack,
    FeatureBank,
    GradientAttack,
    HopSkipJump,
    Linf,
    Margin,
    Square,
)
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.batch.task import Task
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.runtime.engine import Run
from robustfg.core.types import Output

pytestmark = pytest.mark.numeric

DRAWS = 3
AVERAGED = Engine(samples=DRAWS)


class Wavering(nn.Module):
    """Answers differ from pass to pass, in turn; counts the passes of every sample."""

    def __init__(self):
        super().__init__()
        self.net, self.turn = Net(), 0
        self.forwards, self.backwards = 0, 0

    def answer(self, image, turn):
        logits = self.net(image) * (1 + turn)
        return logits + torch.arange(5, dtype=image.dtype) * (turn - 1)

    def forward(self, image):
        logits = self.answer(image, self.turn % DRAWS)
        self.turn += 1
        self.forwards += len(image)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return Output(logits=logits, embedding=logits[:, :3], heads={"other": -logits})

    def _count(self, gradient):
        self.backwards += int((gradient.flatten(1) != 0).any(1).sum())

    def mean(self, image):
        return torch.stack([self.answer(image, turn) for turn in range(DRAWS)]).mean(0)


def active_batch_of(model, clean):
    task = Task.of(clean, LABEL, INDEX, draw=0, logits=None)
    return ActiveBatch(Run(AVERAGED, model), task, threat=Linf(epsilon=1), decision=Margin())


def test_an_evaluation_returns_the_mean_answer_its_margin_and_with_backward_its_gradient():
    model, clean = Wavering(), images()
    batch, leaf = active_batch_of(model, clean), clean.clone().requires_grad_()
    output, margin = batch.evaluate(leaf, graph=True)
    gradient = batch.backward(CrossEntropy()(output, LABEL), leaf)
    naive = clean.clone().requires_grad_()
    mean = model.mean(naive)
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(mean, LABEL, reduction="sum"), naive)
    assert torch.allclose(output.logits, mean)
    assert torch.allclose(output.embedding, mean[:, :3])
    assert torch.allclose(output.heads["other"], -mean)
    assert torch.allclose(margin, -Margin()(mean, LABEL))
    assert torch.allclose(gradient, expected)
    found = batch.results()
    assert found.forwards.tolist() == found.backwards.tolist() == [DRAWS] * 6


def test_a_gradient_is_that_of_the_mean_objective_and_its_margin_that_of_the_mean_answer():
    model, clean = Wavering(), images()
    batch = active_batch_of(model, clean)
    slope = batch.gradient(clean, CrossEntropy())
    naive = clean.clone().requires_grad_()
    values = torch.stack(
        [nn.functional.cross_entropy(model.answer(naive, t), LABEL, reduction="none") for t in range(DRAWS)]
    ).mean(0)
    (expected,) = torch.autograd.grad(values.sum(), naive)
    assert torch.allclose(slope.value, values)
    assert torch.allclose(slope.gradient, expected)
    assert torch.allclose(batch.margin, -Margin()(model.mean(clean), LABEL))


BANK = FeatureBank(torch.eye(3, dtype=torch.float64)[[0, 1]] * 9, torch.tensor([0, 1]))
ATTACKS = {
    "fab": FAB(threat=Linf(epsilon=0.05), steps=2, final_search=0, stop_inside=False),
    "deepfool": DeepFool(threat=Linf(epsilon=1e-4), steps=2, classes=2),
    "features": FeatureAttack(threat=Linf(epsilon=1e-3), bank=BANK, steps=2),
    "gradient": GradientAttack(threat=Linf(epsilon=1e-3), steps=2),
    "square": Square(threat=Linf(epsilon=1e-3), queries=4, objective=CrossEntropy()),
    "nes": EstimatedGradient(threat=Linf(epsilon=1e-3), steps=2, samples=4),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_passes_told_are_those_the_model_has_seen(attack):
    model, clean = Wavering(), images()
    label = model.mean(clean).argmax(1)
    attempt = next(replace(attack, engine=AVERAGED).attempts(model, clean, label, INDEX))
    assert attempt.forwards.sum() == model.forwards
    assert attempt.backwards.sum() == model.backwards
    assert (attempt.forwards % DRAWS == 0).all()


def slope_estimates(samples):
    """The directional slope that NES reads off a pair of queries, many times."""
    net, clean = Net(), images()[:1]

    def noisy(image):
        return net(image) + 0.5 * torch.randn(len(image), 5, dtype=image.dtype)

    attack = EstimatedGradient(threat=Linf(epsilon=0.1), steps=1, samples=2, deviation=0.01)
    task, estimates = Task.of(clean, LABEL[:1], None, draw=0, logits=None), []
    for _ in range(100):
        batch = ActiveBatch(Run(Engine(samples=samples), noisy), task, threat=attack.threat, decision=Margin())
        estimates.append(attack._along(batch, Draws(0, "a", 0, 0), clean, 0, 0)[0, 0, 0, 0])
    return torch.stack(estimates)


def test_what_is_estimated_from_answers_varies_less_the_more_are_averaged():
    torch.manual_seed(0)
    assert slope_estimates(25).std() < slope_estimates(1).std() / 3


class Dropping(nn.Module):
    """Drops inputs at random, with torch's own generator."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, image):
        return self.net(nn.functional.dropout(image, 0.2, training=True))


EACH_ALONE = Engine(samples=2, fixed_batch=1)
RANDOM = {
    "pgd": GradientAttack(threat=Linf(epsilon=0.02), steps=5, random_start=True, restarts=2, engine=EACH_ALONE),
    "last": GradientAttack(threat=Linf(epsilon=0.02), steps=5, last_iterate=True, restarts=2, engine=EACH_ALONE),
    "apgd": APGD(threat=Linf(epsilon=0.02), steps=6, engine=EACH_ALONE),
    "square": Square(threat=Linf(epsilon=0.02), queries=20, engine=EACH_ALONE),
    "nes": EstimatedGradient(threat=Linf(epsilon=0.02), steps=3, samples=4, engine=EACH_ALONE),
    "hop skip jump": HopSkipJump(threat=L2(epsilon=0.5), queries=40, first_queries=5, engine=EACH_ALONE),
}


@pytest.mark.parametrize("attack", RANDOM.values(), ids=RANDOM)
def test_asked_one_by_one_random_models_are_attacked_alike_in_every_batch_and_order(attack):
    model, clean = Dropping(), images()
    label, order = model.net(clean).argmax(1), torch.tensor([4, 0, 5, 2, 1, 3])
    together = attack(model, clean, label, INDEX)
    assert torch.equal(together[order], attack(model, clean[order], label[order], INDEX[order]))
    alone = [attack(model, clean[i : i + 1], label[i : i + 1], INDEX[i : i + 1]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    other = attack(model, clean, label, INDEX + 100)
    assert not torch.equal(together, other)
