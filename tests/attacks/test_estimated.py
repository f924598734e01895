import json

import pytest
import torch

from robustfg.attacks import (
    L2,
    CrossEntropy,
    EstimatedGradient,
    Gaussian,
    GradientAttack,
    Linf,
    Momentum,
    Rademacher,
    Steepest,
)
from robustfg.attacks.rng.philox import keyed_normals
from robustfg.attacks.rng.streams import Draws
from robustfg.core.errors import UserError

INDEX = torch.tensor([7, 3, 12, 0])
ZERO = torch.zeros(4, dtype=torch.int64)
WEIGHT = torch.randint(-9, 10, (3, 4, 4), generator=torch.Generator().manual_seed(1)).double()
DIRECTIONS = pytest.mark.parametrize("directions", [Gaussian(), Rademacher()], ids=lambda d: d.name)


def images(low=0.3, high=0.7):
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(4, 3, 4, 4, generator=generator, dtype=torch.float64)


def linear(image):
    assert not torch.is_grad_enabled()
    score = (image * WEIGHT).flatten(1).sum(1) + 100
    return torch.stack([score, torch.zeros_like(score)], 1)


def asked(attack, clean, model=linear):
    seen = []
    attempt = next(attack.attempts(lambda image: seen.append(image.clone()) or model(image), clean, ZERO, INDEX))
    return seen, attempt


# --- Directions


@DIRECTIONS
def test_directions_have_mean_zero_and_covariance_one(directions):
    index = torch.arange(20_000)
    drawn = directions.drawn(Draws(0, "a", 0, 0), torch.zeros(20_000, 2, 5, 3), index, "direction", 1).flatten(1)
    assert drawn.mean(0).abs().max() < 0.05
    assert (drawn.T.cov() - torch.eye(30)).abs().max() < 0.06


def test_rademacher_directions_are_signs_and_none_depends_on_another():
    drawn = Rademacher().drawn(Draws(0, "a", 0, 0), torch.zeros(4000, 1, 8, 9), torch.arange(4000), "x").flatten(1)
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    patterns = (drawn[:, :4] > 0).long() @ torch.tensor([1, 2, 4, 8])
    assert patterns.bincount(minlength=16).min() > 180  # 250 expected


@DIRECTIONS
def test_directions_are_keyed_by_sample_and_purpose(directions):
    like, draws = torch.zeros(4, 3, 4, 4), Draws(0, "a", 0, 0)
    drawn = directions.drawn(draws, like, INDEX, "direction", 1, 2)
    assert torch.equal(directions.drawn(draws, like[2:], INDEX[2:], "direction", 1, 2), drawn[2:])
    assert not torch.equal(drawn[0], drawn[1])
    for other in (directions.drawn(draws, like, INDEX, "direction", 1, 3),
                  directions.drawn(Draws(1, "a", 0, 0), like, INDEX, "direction", 1, 2)):  # fmt: skip
        assert not torch.equal(drawn, other)


# --- The estimate


@DIRECTIONS
@pytest.mark.parametrize("deviation", [1e-3, 1e-2])
def test_on_a_linear_model_the_estimate_turns_to_the_gradient(directions, deviation):
    clean, threat = images(), L2(epsilon=5)
    cosines = []
    for samples in (20, 1000):
        attack = EstimatedGradient(
            threat=threat, step=Steepest(size=0.1), steps=1, samples=samples, deviation=deviation, directions=directions
        )
        last = asked(attack, clean)[0][-1]
        step = (last - clean).flatten(1)
        assert torch.allclose(step.norm(dim=1), torch.full((4,), 0.1).double())
        cosines.append((step @ -WEIGHT.flatten()) / step.norm(dim=1) / WEIGHT.norm())
    # In d dimensions n pairs give a cosine near sqrt(n / (n + d)): 0.41 and 0.955 here.
    assert (cosines[0] < 0.75).all()
    assert (cosines[1] > 0.93).all()


def test_a_step_equals_the_formula_written_out_for_every_sample():
    clean, threat = images(), L2(epsilon=5)

    def curved(image):
        score = (image**2 * WEIGHT).flatten(1).sum(1) + 100
        return torch.stack([score, torch.zeros_like(score)], 1)

    attack = EstimatedGradient(
        threat=threat, step=Steepest(size=0.2), steps=1, samples=6, deviation=0.05, seed=3, name="mine"
    )
    last = asked(attack, clean, curved)[0][-1]
    for sample in range(4):
        slope = torch.zeros(3, 4, 4, dtype=torch.float64)
        for pair in range(3):
            key = (3, "mine", 0, 0, "direction", 0, pair)
            u = keyed_normals(48, INDEX[sample : sample + 1], *key).view(3, 4, 4).double()
            ends = [curved((clean[sample] + s * 0.05 * u)[None]) for s in (1, -1)]
            above, below = (logits[0, 1] - logits[0, 0] for logits in ends)
            slope += (above - below) / (2 * 0.05) * u / 3
        assert torch.allclose(last[sample], clean[sample] + 0.2 * slope / slope.norm(), rtol=0, atol=1e-9)


@DIRECTIONS
def test_at_the_border_of_ball_and_box_the_signs_are_still_right(directions):
    """Every coordinate ends in its corner, where half of each pair of queries is cut off."""
    clean = images(0.0, 1.0)
    clean[:, :, 0] = 1.0
    clean[:, :, 1] = 0.0
    attack = EstimatedGradient(
        threat=Linf(epsilon=0.05), step=Steepest(size="eps/4"), steps=8, samples=200, directions=directions
    )
    attempt = asked(attack, clean)[1]
    corner = (clean - 0.05 * WEIGHT.sign()).clamp(0, 1)
    with torch.no_grad():
        start, best, found = (linear(image)[:, 0] for image in (clean, corner, attempt.image))
    assert ((start - found) > 0.9 * (start - best)).all()


@DIRECTIONS
@pytest.mark.parametrize("threat", [Linf(epsilon=0.05), L2(epsilon=0.3)], ids=lambda t: t.norm)
def test_every_image_asked_about_is_allowed_and_every_query_counts(directions, threat):
    clean = images(0.0, 1.0)
    attack = EstimatedGradient(
        threat=threat, steps=5, samples=8, deviation=0.05, directions=directions, random_start=True
    )
    seen, attempt = asked(attack, clean)
    for image in seen:
        threat.check(image, clean.repeat(len(image) // 4, 1, 1, 1))
    assert attempt.forwards.tolist() == [5 * 8 + 1] * 4
    assert attack.passes == 41
    assert attempt.backwards.tolist() == [0] * 4
    assert max(len(image) for image in seen) == 8  # one pair of queries a sample at a time


def test_samples_leave_with_the_pair_that_fools_them():
    clean = images()

    def falling(image):
        """Sample 1 is fooled at its 6th query, that is in its third pair."""
        logits = linear(image)
        calls.append(len(image))
        if len(calls) == 3:
            logits[5] = torch.tensor([0.0, 1.0])
        return logits

    calls = []
    attempt = next(EstimatedGradient(threat=Linf(epsilon=0.05), steps=2, samples=10).attempts(
        falling, clean, ZERO, INDEX))  # fmt: skip
    assert calls == [8] * 3 + [6] * 7 + [3]
    assert attempt.forwards.tolist() == [21, 6, 21, 21]
    assert attempt.margin[1] == -1


@DIRECTIONS
def test_a_model_whose_gradient_is_zero_everywhere_is_broken(directions):
    clean, threat = images(), Linf(epsilon=0.1)

    def quantised(image):
        score = ((image * 64).round() / 64 * WEIGHT).flatten(1).sum(1) + 20
        return torch.stack([score, torch.zeros_like(score)], 1)

    margin = quantised(clean)[:, 0]
    blind = next(GradientAttack(threat=threat).attempts(quantised, clean, ZERO, INDEX))
    assert blind.dead_gradient.all()
    attack = EstimatedGradient(threat=threat, steps=10, samples=40, deviation=0.03, directions=directions)
    attempt = next(attack.attempts(quantised, clean, ZERO, INDEX))
    assert (margin > 5).all()
    assert (attempt.margin < 0).all()


@DIRECTIONS
@pytest.mark.parametrize("rule", [Steepest(size="eps/4"), Momentum(size="eps/4", decay=0.9)], ids=["plain", "momentum"])
def test_results_do_not_depend_on_batch_size_or_order(directions, rule):
    clean = images()
    attack = EstimatedGradient(
        threat=Linf(epsilon=0.05), step=rule, steps=4, samples=8, directions=directions, objective=CrossEntropy(),
        restarts=2,
    )  # fmt: skip

    def net(image):
        return linear(image) / 50

    together, order = attack(net, clean, ZERO, INDEX), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(attack(net, clean[order], ZERO, INDEX[order]), together[order], rtol=0, atol=1e-10)
    for one in range(4):
        part = slice(one, one + 1)
        assert torch.allclose(attack(net, clean[part], ZERO[part], INDEX[part]), together[part], rtol=0, atol=1e-10)


def test_restarts_without_a_random_start_begin_at_random_from_the_second():
    clean = images()
    attack = EstimatedGradient(threat=Linf(epsilon=0.1), steps=1, samples=2, deviation=1e-9, restarts=2)
    seen = []
    list(attack.attempts(lambda image: seen.append(image.clone()) or linear(image), clean, ZERO, INDEX))
    first, second = seen[0][:4], seen[2][:4]
    assert torch.allclose(first, clean, atol=1e-7)
    assert ((second - clean).flatten(1).abs().amax(1) > 0.05).all()


def test_a_query_without_a_number_as_answer_turns_no_step():
    clean = images()

    def broken(image):
        return linear(image) * torch.where(image[:, :1, 0, 0] > clean[0, 0, 0, 0], float("nan"), 1.0)

    attack = EstimatedGradient(threat=Linf(epsilon=0.05), steps=3, samples=8)
    attempt = next(attack.attempts(broken, clean, ZERO, INDEX))
    assert attempt.image.isfinite().all()


def test_a_description_is_json_and_names_what_makes_the_attack():
    attack = EstimatedGradient(threat=Linf(epsilon="8/255"), steps=3, samples=4, directions=Rademacher(), seed=2)
    described = json.loads(json.dumps(attack.describe()))
    assert described == {
        "norm": "linf", "epsilon": "8/255", "steps": 3, "samples": 4, "deviation": 0.001, "directions": "rademacher",
        "step_rule": "momentum", "step_size": "eps/10", "step_decay": "0.9", "random_start": False, "restarts": 1,
        "objective": "margin", "seed": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"samples": 5}, "samples must be even and >= 2, got 5"),
        ({"samples": 0}, "samples must be even and >= 2, got 0"),
        ({"deviation": 0.0}, "deviation must be > 0, got 0.0"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        EstimatedGradient(threat=Linf(epsilon=0.1), **options)
