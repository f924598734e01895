import json

import pytest
import torch
from small import INDEX, Linear, Log, Net, images, margin, named
from torch import nn

from robustfg.attacks import L2, CarliniWagner, Engine, Linf
from robustfg.core.errors import UserError

ZEROS = torch.zeros(6, dtype=torch.int64)


def cw(epsilon=1000, **options):
    return CarliniWagner(**{"threat": L2(epsilon=epsilon), "stop_inside": False, "searches": 4, "steps": 40} | options)


def naive(model, clean, label, searches, steps, constant, confidence=0.0):
    """The smallest successful image of one sample, with torch's Adam and autograd through tanh."""
    best, size, low, high = clean, torch.inf, 0.0, torch.inf
    start = torch.atanh((2 * clean - 1) * 0.999999)
    for _ in range(searches):
        point, won = start.clone().requires_grad_(), False
        adam = torch.optim.Adam([point], lr=0.01)
        for _ in range(steps):
            image = clean + (torch.tanh(point) - torch.tanh(start)) / 2
            distance, gap = (image - clean).square().sum(), margin(model, image, label) + confidence
            if gap < 0:
                won = True
                if distance < size:
                    best, size = image.detach(), distance.item()
            adam.zero_grad()
            (distance + constant * gap.clamp_min(0)).backward()
            adam.step()
        low, high = (low, min(high, constant)) if won else (max(low, constant), high)
        constant = (low + high) / 2 if high < torch.inf else constant * 10
    return best


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_each_sample_equals_a_naive_search_with_autograd_and_the_library_adam(confidence):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    found = cw(initial_constant=0.05, early_abort=False, confidence=confidence)(model, clean, label, INDEX)
    assert (found != clean).flatten(1).any(1).all()
    for sample in range(6):
        expected = naive(model, clean[sample : sample + 1], label[sample], 4, 40, 0.05, confidence)
        assert torch.allclose(found[sample], expected[0], rtol=0, atol=1e-9)


def test_on_a_linear_model_it_finds_the_distance_of_the_plane():
    model, clean = Linear(), images()
    nearest = model.score(clean) / model.weight.norm()
    found = cw(searches=7, steps=120)(model, clean, ZEROS, INDEX)
    assert (model.score(found) < 0).all()
    size = (found - clean).flatten(1).norm(dim=1)
    assert (size >= nearest).all()
    assert (size <= 1.01 * nearest).all()


def test_logits_that_are_all_negative_change_nothing():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    expected = cw()(model, clean, label, INDEX)
    assert (model(expected).argmax(1) != label).all()
    assert torch.allclose(cw()(lambda x: model(x) - 1000, clean, label, INDEX), expected, rtol=0, atol=1e-8)


def test_black_and_white_pixels_are_no_trouble():
    model, clean = Net(), images(low=0.0, high=1.0).round()
    label = model(clean).argmax(1)
    found = cw(searches=6, steps=100, learning_rate=0.1)(model, clean, label, INDEX)
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (model(found).argmax(1) != label).all()


def test_passes_are_one_for_the_clean_image_and_steps_minus_one_for_every_constant():
    log, clean = Log(Linear()), named(images())
    attack = cw(searches=3, steps=50, early_abort=False)
    (attempt,) = attack.attempts(log, clean, ZEROS, INDEX)
    assert attempt.forwards.tolist() == [log.forwards[name] for name in range(6)] == [148] * 6
    assert attempt.backwards.tolist() == [log.backwards[name] for name in range(6)] == [148] * 6
    assert attack.passes == 148


def test_a_sample_that_is_wrong_already_costs_one_pass_and_is_left_alone():
    log, clean = Log(Linear(bias=-20.0)), named(images())
    (attempt,) = cw().attempts(log, clean, ZEROS, INDEX)
    assert torch.equal(attempt.image, clean)
    assert attempt.forwards.tolist() == [log.forwards[name] for name in range(6)] == [1] * 6
    assert (attempt.margin < 0).all()


def test_early_abort_saves_passes_of_single_samples_and_loses_little():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    whole, short = (
        next(cw(early_abort=abort, searches=6, steps=100).attempts(model, clean, label, INDEX))
        for abort in (False, True)
    )
    sizes = [(attempt.image - clean).flatten(1).norm(dim=1) for attempt in (whole, short)]
    assert (short.forwards < whole.forwards).all()
    assert len(set(short.forwards.tolist())) > 1
    assert (sizes[1] <= 1.02 * sizes[0]).all()


def test_samples_leave_with_the_first_success_inside_epsilon():
    model, clean = Linear(), images()
    nearest = model.score(clean) / model.weight.norm()
    epsilon = 1.2 * nearest.median().item()
    smallest = next(cw(searches=6, steps=60).attempts(model, clean, ZEROS, INDEX))
    attempt = next(cw(epsilon, searches=6, steps=60, stop_inside=True).attempts(model, clean, ZEROS, INDEX))
    inside = (smallest.image - clean).flatten(1).norm(dim=1) <= epsilon
    assert inside.tolist() == (model.score(attempt.image) < 0).tolist()
    assert len(set(inside.tolist())) == 2
    assert (attempt.forwards[inside] < smallest.forwards[inside]).all()
    assert ((attempt.image - clean).flatten(1).norm(dim=1) <= epsilon + 1e-9).all()
    assert attempt.margin[~inside].isnan().all()
    outside = (attempt.image - clean)[~inside].flatten(1).norm(dim=1)
    assert torch.allclose(outside, torch.full_like(outside, epsilon), rtol=1e-9)


def test_with_confidence_the_margin_is_passed_by_as_much():
    model, clean = Linear(), images()
    found = cw(searches=7, steps=120, confidence=0.5)(model, clean, ZEROS, INDEX)
    assert (model.score(found) < -0.5).all()
    nearest = (model.score(clean) + 0.5) / model.weight.norm()
    assert ((found - clean).flatten(1).norm(dim=1) <= 1.01 * nearest).all()


@pytest.mark.parametrize("options", [{}, {"stop_inside": True, "threat": L2(epsilon=0.1)}])
def test_results_do_not_depend_on_batch_size_or_order(options):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = cw(searches=2, steps=45, initial_constant=0.05, **options)
    together = attack(model, clean, label, INDEX)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = attack(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-8)
    alone = [attack(model, *part) for part in zip(*(x.split(1) for x in (clean, label, INDEX)), strict=True)]
    assert torch.allclose(torch.cat(alone), together, rtol=0, atol=1e-8)


def test_small_inputs_work():
    empty = images()[:0]
    assert cw()(Net(), empty, ZEROS[:0], ZEROS[:0]).shape == empty.shape
    grey = images(channels=1)
    label = Net(1)(grey).argmax(1)
    assert (Net(1)(cw()(Net(1), grey, label, INDEX)).argmax(1) != label).all()
    assert torch.equal(cw(0)(Linear(), images(), ZEROS, INDEX), images())


def test_the_model_is_left_as_it_was_and_a_folded_copy_finds_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    model.train()(images(64))
    model[1].train()
    clean, label = images(), model.eval()(images()).argmax(1)
    model.train()
    sizes = []
    for fold in (True, False):
        found = cw(initial_constant=1, engine=Engine(fold=fold))(model, clean, label, INDEX)
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        sizes.append((found - clean).flatten(1).norm(dim=1))
    assert (sizes[0] > 0).all()
    assert torch.allclose(*sizes, rtol=0.05)


def test_descriptions_are_json_and_tell_settings_apart():
    variants = [
        cw(), cw(0.5), cw(searches=3), cw(steps=9), cw(learning_rate=0.1), cw(initial_constant=1), cw(confidence=1),
        cw(early_abort=False), cw(stop_inside=True), cw(seed=1),
    ]  # fmt: skip
    assert len({json.dumps(attack.describe()) for attack in variants}) == len(variants)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"searches": 0}, "searches must be >= 1, got 0"),
        ({"steps": 1}, "steps must be >= 2, got 1"),
        ({"learning_rate": 0}, "learning_rate must be > 0, got 0"),
        ({"initial_constant": 0}, "initial_constant must be > 0, got 0"),
        ({"confidence": -1}, "confidence must be >= 0, got -1"),
        ({"restarts": 2}, "CarliniWagner has nothing random: restarts must be 1, got 2"),
        ({"threat": Linf(epsilon="8/255")}, "CarliniWagner minimises the l2 size, got the norm linf"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        cw(**options)
