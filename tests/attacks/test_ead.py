import json
import math

import pytest
import torch
from small import INDEX, Linear, Log, Net, images, margin, named

from robustfg.attacks import L1, L2, ElasticNet
from robustfg.core.errors import UserError

ZEROS = torch.zeros(6, dtype=torch.int64)
RULES = pytest.mark.parametrize("rule", ["l1", "en"])


def ead(epsilon=1000, **options):
    settings = {"threat": L1(epsilon=epsilon), "stop_inside": False, "searches": 3, "steps": 30}
    return ElasticNet(**settings | {"initial_constant": 0.05} | options)


def elastic(change, beta):
    return beta * change.abs().sum() + change.square().sum()


def naive(model, clean, label, attack):
    """Algorithm 1 for one sample ``(1, C, H, W)``, with a binary search over c."""
    best, least, low, high, constant = clean, math.inf, 0.0, math.inf, attack.initial_constant
    for _ in range(attack.searches):
        image, ahead, won = clean, clean, False
        for step in range(attack.steps - 1):
            leaf = ahead.clone().requires_grad_()
            loss = constant * margin(model, leaf, label).clamp_min(0) + (leaf - clean).square().sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            rate = attack.learning_rate * math.sqrt(1 - step / attack.steps)
            moved = ahead - rate * gradient
            higher, lower = (moved - attack.beta).clamp_max(1), (moved + attack.beta).clamp_min(0)
            new = torch.where(moved - clean > attack.beta, higher, clean)
            new = torch.where(moved - clean < -attack.beta, lower, new)
            ahead = (new + step / (step + 3) * (new - image)).clamp(0, 1) if attack.momentum else new
            image = new
            for seen in (image, ahead):
                change = seen - clean
                size = change.abs().sum() if attack.rule == "l1" else elastic(change, attack.beta)
                if margin(model, seen, label) < 0:
                    won = True
                    if size < least:
                        best, least = seen, size
        low, high = (low, min(high, constant)) if won else (max(low, constant), high)
        constant = (low + high) / 2 if high < math.inf else constant * 10
    return best.detach()


@RULES
@pytest.mark.parametrize("momentum", [True, False])
def test_each_sample_equals_a_naive_search(rule, momentum):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = ead(rule=rule, momentum=momentum, beta=0.005)
    found = attack(model, clean, label, INDEX)
    assert (model(found).argmax(1) != label).all()
    for sample in range(6):
        expected = naive(model, clean[sample : sample + 1], label[sample], attack)
        assert torch.allclose(found[sample], expected[0], rtol=0, atol=1e-9)


def smallest_elastic(model, clean, beta):
    """On a linear model: soft-thresholded weights, just long enough (the box is out of the way); by bisection."""
    weight, sizes = model.weight.detach(), []
    for score in model.score(clean).tolist():
        low, high = 0.0, 1e3
        for _ in range(200):
            middle = (low + high) / 2
            change = -weight.sign() * (middle * weight.abs() - beta).clamp_min(0) / 2
            low, high = (low, middle) if (change * weight).sum() < -score else (middle, high)
        sizes.append(elastic(change, beta).item())
    return torch.tensor(sizes, dtype=torch.float64)


def test_rule_en_comes_near_the_smallest_elastic_net_of_a_linear_model():
    model, clean, beta = Linear(bias=3.5), images(low=0.4, high=0.6), 0.02
    found = ead(rule="en", beta=beta, searches=8, steps=300)(model, clean, ZEROS, INDEX)
    assert (model.score(found) < 0).all()
    sizes = torch.stack([elastic(change, beta) for change in found - clean])
    least = smallest_elastic(model, clean, beta)
    assert (sizes >= least - 1e-9).all()
    assert (sizes <= 1.4 * least).all()
    assert (sizes / least).median() < 1.15


def test_without_thresholding_rule_en_reaches_the_smallest_l2_size_of_a_linear_model():
    """What is missing with beta > 0 is due to the paper's threshold, which does not shrink with the steps."""
    model, clean = Linear(bias=3.5), images(low=0.4, high=0.6)
    found = ead(rule="en", beta=0.0, searches=12, steps=400)(model, clean, ZEROS, INDEX)
    least = model.score(clean) / model.weight.norm()
    sizes = (found - clean).flatten(1).norm(dim=1)
    assert (sizes >= least - 1e-9).all()
    assert (sizes <= 1.001 * least).all()


def test_on_a_linear_model_rule_l1_finds_the_one_value_that_matters_most():
    model, clean = Linear(bias=3.5), images(low=0.4, high=0.6)
    model.weight.data[0, 0, 0] = 9.0
    least = model.score(clean) / 9
    found = ead(beta=0.01, searches=4, steps=60)(model, clean, ZEROS, INDEX)
    assert (model.score(found) < 0).all()
    size = (found - clean).abs().sum((1, 2, 3))
    assert (size >= least - 1e-12).all()
    assert (size <= 1.005 * least).all()


def test_rule_l1_finds_a_smaller_l1_size_than_rule_en_and_leaves_most_values_alone():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    found = {rule: ead(rule=rule, beta=0.01, searches=5)(model, clean, label, INDEX) - clean for rule in ("l1", "en")}
    sizes = {rule: change.abs().sum((1, 2, 3)) for rule, change in found.items()}
    nets = {rule: torch.stack([elastic(one, 0.01) for one in change]) for rule, change in found.items()}
    assert (sizes["l1"] <= sizes["en"]).all()
    assert (nets["en"] <= nets["l1"]).all()
    assert (sizes["l1"] < sizes["en"]).any()
    assert (found["l1"] != 0).double().mean() < 0.7


def test_rule_en_passes_over_successes_outside_epsilon():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    net = (ead(rule="en", beta=0.01)(model, clean, label, INDEX) - clean).abs().sum((1, 2, 3))
    least = (ead(rule="l1", beta=0.01)(model, clean, label, INDEX) - clean).abs().sum((1, 2, 3))
    sample = int((net - least).argmax())
    epsilon = 1.001 * least[sample].item()
    assert least[sample] < epsilon < net[sample]
    found = ead(epsilon, rule="en", beta=0.01)(model, clean, label, INDEX)[sample : sample + 1]
    assert margin(model, found, label[sample]) < 0
    assert (found - clean[sample]).abs().sum() <= epsilon + 1e-9


@pytest.mark.parametrize(("momentum", "forwards"), [(True, 59), (False, 30)])
def test_passes_are_counted_and_no_more_than_announced(momentum, forwards):
    log, clean = Log(Linear()), named(images())
    attack = ead(momentum=momentum, searches=1)
    (attempt,) = attack.attempts(log, clean, ZEROS, INDEX)
    assert attempt.forwards.tolist() == [log.forwards[name] for name in range(6)] == [forwards] * 6
    assert attempt.backwards.tolist() == [log.backwards[name] for name in range(6)] == [30] * 6
    assert attack.passes == forwards


def test_samples_leave_with_the_first_success_inside_epsilon():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    smallest = ead()(model, clean, label, INDEX)
    size = (smallest - clean).abs().sum((1, 2, 3))
    epsilon = size.sort().values[2].item() * 1.0001
    whole, attempt = (
        next(ead(epsilon, stop_inside=stop).attempts(model, clean, label, INDEX)) for stop in (False, True)
    )
    inside = size <= epsilon
    assert inside.sum() == 3
    assert ((model(attempt.image).argmax(1) != label) | ~inside).all()
    assert (attempt.forwards[inside] < whole.forwards[inside]).all()
    assert ((attempt.image - clean).abs().sum((1, 2, 3)) <= epsilon + 1e-9).all()


@RULES
def test_results_do_not_depend_on_batch_size_or_order(rule):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = ead(rule=rule, early_abort=True, steps=45)
    together = attack(model, clean, label, INDEX)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = attack(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-8)
    alone = [attack(model, *part) for part in zip(*(x.split(1) for x in (clean, label, INDEX)), strict=True)]
    assert torch.allclose(torch.cat(alone), together, rtol=0, atol=1e-8)


@RULES
def test_small_inputs_work(rule):
    empty = images()[:0]
    assert ead(rule=rule)(Net(), empty, ZEROS[:0], ZEROS[:0]).shape == empty.shape
    grey = images(channels=1)
    label = Net(1)(grey).argmax(1)
    assert (Net(1)(ead(rule=rule)(Net(1), grey, label, INDEX)).argmax(1) != label).all()
    assert torch.equal(ead(0, rule=rule)(Linear(), images(), ZEROS, INDEX), images())
    assert torch.equal(ead(rule=rule)(Linear(bias=-20), images(), ZEROS, INDEX), images())


def test_descriptions_are_json_and_tell_settings_apart():
    variants = [
        ead(), ead(0.5), ead(beta=0.1), ead(rule="en"), ead(momentum=False), ead(early_abort=True), ead(searches=2),
    ]  # fmt: skip
    assert len({json.dumps(attack.describe()) for attack in variants}) == len(variants)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, "beta must be >= 0, got -1"),
        ({"rule": "l2"}, "rule must be l1 or en, got l2"),
        ({"rule": "en", "stop_inside": True}, "needs stop_inside: false"),
        ({"threat": L2(epsilon=1)}, "ElasticNet minimises the l1 size, got the norm l2"),
        ({"restarts": 2}, "ElasticNet has nothing random: restarts must be 1, got 2"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        ead(**options)
