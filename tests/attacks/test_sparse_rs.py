import json
from itertools import product

import pytest
import torch

from robustfg.attacks import L0, Linf, Margin, SparseRS
from robustfg.attacks.black_box.sparse_rs import distinct
from robustfg.core.errors import UserError

INDEX = torch.tensor([7, 3, 12, 0])
ZERO = torch.zeros(4, dtype=torch.int64)
WEIGHT = torch.randint(-9, 10, (3, 6, 6), generator=torch.Generator().manual_seed(1)).double()


def images(channels=3, side=6):
    generator = torch.Generator().manual_seed(0)
    return ((0.2 + 0.6 * torch.rand(4, channels, side, side, generator=generator)) * 64).round().double() / 64


def linear(image):
    assert not torch.is_grad_enabled()
    score = (image * WEIGHT).flatten(1).sum(1) + 500
    return torch.stack([score, torch.zeros_like(score)], 1)


def indifferent(image):
    return torch.tensor([[1.0, 0.0]]).expand(len(image), -1).clone()


def asked(attack, clean, model=indifferent):
    seen = []
    next(attack.attempts(lambda image: seen.append(image.clone()) or model(image), clean, ZERO, INDEX))
    return seen


def changed(image, clean):
    return (image != clean).any(1).flatten(1)


# --- The threat


def test_size_counts_pixels_changed_in_any_channel():
    change = torch.zeros(2, 3, 4, 4)
    change[0, 0, 1, 2] = change[0, 2, 1, 2] = 1e-7
    change[0, 1, 3, 3] = -1
    assert L0(epsilon=3).size(change).tolist() == [2, 0]


def test_a_random_perturbation_changes_as_many_pixels_as_allowed_and_stays_in_the_box():
    threat, clean = L0(epsilon=5), images()
    noisy = clean + threat.uniform(clean, INDEX, 0, "a")
    assert threat.size(noisy - clean).tolist() == [5] * 4
    threat.check(noisy, clean)
    assert torch.equal(threat.uniform(clean[2:], INDEX[2:], 0, "a"), threat.uniform(clean, INDEX, 0, "a")[2:])


# --- Different integers


def test_distinct_integers_are_different_and_every_subset_comes_alike_often():
    """All 12 x 20 x 30 corners of a grid fine enough for Floyd's three draws from five."""
    grid = torch.tensor(list(product(range(12), range(20), range(30))), dtype=torch.float64)
    drawn = distinct((grid + 0.5) / torch.tensor([12, 20, 30]), 5)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    subsets = torch.zeros(len(drawn), 5, dtype=torch.int64).scatter_(1, drawn, 1)
    counts = torch.unique(subsets, dim=0, return_counts=True)[1].tolist()
    assert counts == [12 * 20 * 30 // 10] * 10


def test_all_integers_can_be_drawn():
    assert distinct(torch.rand(5, 4), 4).sort(1).values.tolist() == [[0, 1, 2, 3]] * 5
    assert distinct(torch.rand(5, 0), 4).shape == (5, 0)


# --- The attack


def test_the_start_and_every_proposal_change_exactly_so_many_pixels_to_corners_of_the_colour_cube():
    clean = images()
    attack = SparseRS(threat=L0(epsilon=9), queries=60)
    for image in asked(attack, clean, linear):
        moved = changed(image, clean)
        assert moved.sum(1).tolist() == [9] * 4
        assert set(image.flatten(2).transpose(1, 2)[moved].flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("rescale", [True, False])
def test_as_many_pixels_are_exchanged_as_the_schedule_says(rescale):
    clean, queries, count = images(side=12), 80, 60
    attack = SparseRS(threat=L0(epsilon=count), queries=queries, alpha_init=0.8, rescale_schedule=rescale)
    start, *proposals = asked(attack, clean)
    sizes = set()
    for query, image in enumerate(proposals, 1):
        place = int(query / queries * 10_000) if rescale else query
        borders = [(0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20)]
        divisor = [by for border, by in borders if place > border][-1]
        swaps = max(int(0.8 / divisor * count), 1)
        sizes.add(swaps)
        assert (changed(start, clean) & ~changed(image, clean)).sum(1).tolist() == [swaps] * 4
        assert (~changed(start, clean) & changed(image, clean)).sum(1).tolist() == [swaps] * 4
    assert len(sizes) > (6 if rescale else 1)


def test_only_what_raises_the_objective_is_kept():
    clean, count = images(), 8
    attack = SparseRS(threat=L0(epsilon=count), queries=200)
    best, *proposals = asked(attack, clean, linear)
    kept = torch.zeros(4)
    with torch.no_grad():
        value = Margin()(linear(best), ZERO)
        for query, image in enumerate(proposals, 1):
            swaps = attack.exchanged(count, query)
            differ = (image != best).any(1).flatten(1).sum(1)
            assert (differ <= 2 * swaps).all()
            found = Margin()(linear(image), ZERO)
            better = found > value
            best, value = torch.where(better[:, None, None, None], image, best), torch.where(better, found, value)
            kept += better
    assert (kept > 3).all()
    assert (kept < 150).all()


def test_a_linear_margin_falls_nearly_as_far_as_it_can():
    clean, count = images(), 4
    attempt = next(SparseRS(threat=L0(epsilon=count), queries=2500).attempts(linear, clean, ZERO, INDEX))
    drop = linear_drop(clean, attempt.image)
    gain = torch.maximum(-WEIGHT * (1 - clean), WEIGHT * clean).clamp_min(0).sum(1).flatten(1)
    best = gain.topk(count, dim=1).values.sum(1)
    assert (drop <= best + 1e-9).all()
    assert (drop >= 0.97 * best).all()
    assert attempt.forwards.tolist() == [2500] * 4
    assert attempt.backwards.tolist() == [0] * 4


def linear_drop(clean, image):
    return ((clean - image) * WEIGHT).flatten(1).sum(1)


def test_results_are_bit_equal_in_any_batch_and_order():
    clean, attack = images(), SparseRS(threat=L0(epsilon=6), queries=80, restarts=2)
    together, order = attack(linear, clean, ZERO, INDEX), torch.tensor([2, 0, 3, 1])
    assert torch.equal(attack(linear, clean[order], ZERO, INDEX[order]), together[order])
    for one in range(4):
        part = slice(one, one + 1)
        assert torch.equal(attack(linear, clean[part], ZERO[part], INDEX[part]), together[part])


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (36, 35), (1000, 35)])
def test_any_number_of_pixels_works(count, expected):
    clean = images()
    for image in asked(SparseRS(threat=L0(epsilon=count), queries=20), clean):
        assert changed(image, clean).sum(1).tolist() == [expected] * 4


def test_a_description_is_json_and_names_what_makes_the_attack():
    attack = SparseRS(threat=L0(epsilon=24), queries=50, alpha_init=0.5, seed=3)
    assert json.loads(json.dumps(attack.describe())) == {
        "norm": "l0", "epsilon": "24", "steps": 50, "rescale_schedule": True, "restarts": 1, "objective": "margin",
        "seed": 3, "alpha_init": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threat": Linf(epsilon=0.1)}, "sparse_rs knows the l0 threat, got linf"),
        ({"alpha_init": 0}, r"alpha_init must be in \(0, 1\], got 0"),
        ({"queries": 0}, "queries must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        SparseRS(**({"threat": L0(epsilon=3)} | options))
