import json
import math

import pytest
import torch
import torch.nn.functional as F

from robustfg.attacks import L1, L2, HopSkipJump, Linf, Rademacher
from robustfg.attacks.black_box.decision_based import grainy
from robustfg.attacks.rng.streams import Draws
from robustfg.core.errors import UserError

INDEX = torch.tensor([7, 3, 12, 0])
ZERO = torch.zeros(4, dtype=torch.int64)
WEIGHT = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NORMS = pytest.mark.parametrize(("threat", "dual"), [(L2(epsilon=100), 2), (Linf(epsilon=1), 1)], ids=["l2", "linf"])


def images():
    generator = torch.Generator().manual_seed(0)
    return 0.4 + 0.2 * torch.rand(4, 3, 4, 4, generator=generator, dtype=torch.float64)


OFFSET = -(images() * WEIGHT).flatten(1).sum(1).min() + 0.3


def linear(image):
    """The margin of class 0 is at least 0.3 on every clean image; where it falls below 0 the prediction is wrong."""
    assert not torch.is_grad_enabled()
    score = (image * WEIGHT).flatten(1).sum(1) + OFFSET
    return torch.stack([score, torch.zeros_like(score)], 1)


def predictions_only(image):
    logits = linear(image)
    return F.one_hot(logits.argmax(1), 2).to(logits.dtype)


@NORMS
@pytest.mark.parametrize("directions", [None, Rademacher()], ids=["gaussian", "rademacher"])
def test_on_a_linear_model_the_distance_comes_near_the_smallest_there_is(threat, dual, directions):
    clean = images()
    options = {} if directions is None else {"directions": directions}
    attack = HopSkipJump(threat=threat, queries=2500, stop_inside=False, **options)
    attempt = next(attack.attempts(linear, clean, ZERO, INDEX))
    with torch.no_grad():
        least = linear(clean)[:, 0] / torch.linalg.vector_norm(WEIGHT, dual)
    size = threat.size(attempt.image - clean)
    assert (attempt.margin < 0).all()
    assert (size >= least * (1 - 1e-9)).all()
    assert (size <= least * 1.2).all()
    few = next(HopSkipJump(threat=threat, queries=400, stop_inside=False).attempts(linear, clean, ZERO, INDEX))
    assert (threat.size(few.image - clean) > size).all()


@NORMS
def test_predictions_are_all_it_sees(threat, dual):
    clean, attack = images(), HopSkipJump(threat=threat, queries=1200, stop_inside=False)
    rich, poor = (next(attack.attempts(model, clean, ZERO, INDEX)) for model in (linear, predictions_only))
    assert torch.equal(rich.image, poor.image)
    assert torch.equal(rich.forwards, poor.forwards)
    assert rich.backwards.tolist() == [0] * 4


@NORMS
@pytest.mark.parametrize("queries", [1, 2, 30, 150, 700])
def test_no_sample_is_asked_about_more_often_than_allowed_and_the_count_is_true(threat, dual, queries):
    asked = []
    attack = HopSkipJump(threat=threat, queries=queries, stop_inside=False)
    attempt = next(attack.attempts(lambda image: asked.append(len(image)) or linear(image), images(), ZERO, INDEX))
    assert attempt.forwards.sum() == sum(asked)
    assert (attempt.forwards <= queries).all()
    if queries == 700:
        assert (attempt.forwards > 400).all()
    threat.check(attempt.image, images())


@NORMS
@pytest.mark.parametrize("queries", [25, 47, 73, 101, 140, 188])
def test_short_estimates_with_manyhalvings_do_not_overspend_either(threat, dual, queries):
    attack = HopSkipJump(threat=threat, queries=queries, first_queries=2, stop_inside=False)
    attempt = next(attack.attempts(linear, images(), ZERO, INDEX))
    assert (attempt.forwards <= queries).all()
    assert (attempt.forwards > queries - 30).all()


class Answers:
    """A stand-in for a batch: wrong where the first pixel is bright."""

    def __init__(self, clean, threshold):
        self.clean, self.label, self.index, self.threshold, self.seen = clean, ZERO, INDEX, threshold, []

    def __len__(self):
        return len(self.clean)

    def evaluate(self, image, of):
        self.seen.append((image, of))
        margin = self.threshold[of] - image[:, 0, 0, 0]
        return margin[:, None], margin

    def clearance(self, output):
        return torch.zeros(len(output), dtype=output.dtype)


@NORMS
def test_queries_in_float32_move_pixels_by_more_than_rounding(threat, dual):
    clean = images().float()
    batch = Answers(clean, torch.full((4,), 9.0))
    HopSkipJump(threat=threat)._normal(batch, Draws(0, "a", 0, 0), clean + 1e-6, 4, 40)
    move = torch.cat([shown for shown, _ in batch.seen]) - (clean + 1e-6).repeat(40, 1, 1, 1)
    assert move.flatten(1).norm(dim=1).min() > 2 * 48**0.5 * 2**-23


@NORMS
@pytest.mark.parametrize("step", [1, 4])
def test_a_normal_equals_the_formula_written_out_also_where_answers_are_unbalanced(threat, dual, step):
    """Equations 14 and 16: the mean of (sign less mean sign) times direction; all alike: the mean direction."""
    clean = images()
    point = clean + 0.1
    threshold = point[:, 0, 0, 0] + torch.tensor([0.004, -0.004, 9.0, -9.0])  # mostly right, mostly wrong, all, none
    threshold = point[:, 0, 0, 0] + (threshold - point[:, 0, 0, 0]) * (1 if step == 1 else 0.5 if dual == 2 else 0.07)
    batch, attack = Answers(clean, threshold), HopSkipJump(threat=threat, at_once=7)
    normal = attack._normal(batch, Draws(0, "a", 0, 0), point, step, 40)
    images_seen, rows = (torch.cat(part) for part in zip(*batch.seen, strict=True))
    for sample in range(4):
        shown = images_seen[rows == sample]
        assert len(shown) == 40
        move = shown - point[sample]
        distance = 0.1 if step == 1 else threat.size(point - clean)[sample].item() / 48
        assert torch.allclose(move.flatten(1).norm(dim=1), torch.full((40,), distance).double(), rtol=1e-9)
        sign = (shown[:, 0, 0, 0] > threshold[sample]).double() * 2 - 1
        if sample < 2:
            assert 0.05 < sign.mean().abs() < 1
        weight = sign if sign.mean().abs() == 1 else sign - sign.mean()
        expected = (weight[:, None, None, None] * move).sum(0)
        assert torch.allclose(normal[sample], expected, rtol=0, atol=1e-12)


@NORMS
def test_samples_leave_as_soon_as_a_wrong_image_lies_within_epsilon(threat, dual):
    clean = images()
    with torch.no_grad():
        least = (linear(clean)[:, 0] / torch.linalg.vector_norm(WEIGHT, dual)).max().item()
    ball = type(threat)(epsilon=1.5 * least)
    early = next(HopSkipJump(threat=ball, queries=3000).attempts(linear, clean, ZERO, INDEX))
    late = next(HopSkipJump(threat=ball, queries=3000, stop_inside=False).attempts(linear, clean, ZERO, INDEX))
    assert (early.margin < 0).all()
    assert (early.forwards < late.forwards).all()
    assert (ball.size(late.image - clean) < ball.size(early.image - clean)).all()


@NORMS
def test_a_sample_whose_smallest_perturbation_is_too_large_ends_inside_the_ball(threat, dual):
    clean, ball = images(), type(threat)(epsilon=0.002)
    attempt = next(HopSkipJump(threat=ball, queries=400).attempts(linear, clean, ZERO, INDEX))
    assert attempt.margin.isnan().all()
    assert torch.allclose(ball.size(attempt.image - clean), torch.full((4,), 0.002).double(), rtol=0, atol=1e-9)


@NORMS
def test_a_sample_that_is_wrong_already_costs_one_query(threat, dual):
    label = torch.tensor([0, 1, 0, 1])
    attack = HopSkipJump(threat=threat, queries=300, stop_inside=False)
    attempt = next(attack.attempts(linear, images(), label, INDEX))
    assert attempt.forwards[label == 1].tolist() == [1, 1]
    assert torch.equal(attempt.image[label == 1], images()[label == 1])
    assert (attempt.margin < 0).all()


@NORMS
def test_where_no_noise_is_wrong_the_clean_image_comes_back(threat, dual):
    def certain(image):
        return torch.tensor([[1.0, 0.0]]).expand(len(image), -1).clone()

    attempt = next(HopSkipJump(threat=threat, queries=300, tries=7).attempts(certain, images(), ZERO, INDEX))
    assert torch.equal(attempt.image, images())
    assert attempt.forwards.tolist() == [8] * 4
    assert attempt.first_success.tolist() == [-1] * 4


def test_starting_noise_has_every_grain_and_is_keyed_by_the_sample():
    clean, draws = torch.rand(4, 3, 16, 12), Draws(0, "a", 0, 0)
    for attempt, cells in enumerate((None, 8, 4, 2, 1)):
        noise = grainy(clean, INDEX, draws, attempt)
        assert noise.shape == clean.shape
        assert len(noise[0, 0].unique()) == (192 if cells is None else cells * cells)
        assert torch.equal(grainy(clean[1:3], INDEX[1:3], draws, attempt), noise[1:3])
        assert not torch.equal(grainy(clean, INDEX, draws, attempt + 5), noise)
    assert (noise >= 0).all()
    assert (noise < 1).all()


@NORMS
def test_results_do_not_depend_on_batch_size_or_order(threat, dual):
    clean, attack = images(), HopSkipJump(threat=threat, queries=600, stop_inside=False)
    together, order = attack(linear, clean, ZERO, INDEX), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(attack(linear, clean[order], ZERO, INDEX[order]), together[order], rtol=0, atol=1e-7)
    for one in range(4):
        part = slice(one, one + 1)
        assert torch.allclose(attack(linear, clean[part], ZERO[part], INDEX[part]), together[part], rtol=0, atol=1e-7)


@NORMS
def test_how_many_directions_are_tried_at_once_changes_memory_only(threat, dual):
    clean, most, found = images(), [], []
    for at_once in (1, 8, 1000):
        sizes = []
        attack = HopSkipJump(threat=threat, queries=500, stop_inside=False, at_once=at_once)
        model = lambda image, sizes=sizes: sizes.append(len(image)) or linear(image)  # noqa: E731
        found.append(next(attack.attempts(model, clean, ZERO, INDEX)).image)
        most.append(max(sizes))
    assert most[:2] == [4, 32]
    assert most[2] >= 4 * 100
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-7)
    assert torch.allclose(found[0], found[2], rtol=0, atol=1e-7)


def test_the_search_for_the_boundary_is_as_fine_as_the_paper_says_or_floats_allow():
    l2, linf = HopSkipJump(threat=L2(epsilon=1)), HopSkipJump(threat=Linf(epsilon=1))
    large = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    assert l2.halvings(large) == math.ceil(1.5 * math.log2(3072))
    assert linf.halvings(large) == math.ceil(2 * math.log2(3072))
    assert linf.halvings(large.float()) == 20


def test_a_description_is_json_and_names_what_makes_the_attack():
    attack = HopSkipJump(threat=L2(epsilon=0.5), queries=70, seed=3, directions=Rademacher())
    assert json.loads(json.dumps(attack.describe())) == {
        "norm": "l2", "epsilon": "0.5", "steps": 70, "first_queries": 100, "most_queries": 10_000, "tries": 100,
        "directions": "rademacher", "stop_inside": True, "restarts": 1, "objective": "prediction", "seed": 3,
    }  # fmt: skip
    assert attack.passes == 70


@pytest.mark.parametrize("option", ["queries", "first_queries", "most_queries", "tries", "at_once"])
def test_counts_below_one_are_refused_by_name(option):
    with pytest.raises(UserError, match=f"{option} must be >= 1, got 0"):
        HopSkipJump(threat=L2(epsilon=0.5), **{option: 0})


def test_other_norms_are_refused():
    with pytest.raises(UserError, match="hopskipjump knows linf and l2 threats, got l1"):
        HopSkipJump(threat=L1(epsilon=12))
