import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustfg.attacks import L2, BoundaryAttack, Linf
from robustfg.attacks.rng.streams import Draws
from robustfg.core.errors import UserError

FREE = L2(epsilon=100)
INDEX = torch.tensor([7, 3, 12, 0])
ZERO = torch.zeros(4, dtype=torch.int64)
WEIGHT = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def images():
    generator = torch.Generator().manual_seed(0)
    return 0.4 + 0.2 * torch.rand(4, 3, 4, 4, generator=generator, dtype=torch.float64)


OFFSET = -(images() * WEIGHT).flatten(1).sum(1).min() + 0.3


def linear(image):
    """The margin of class 0 is at least 0.3 on every clean image; where it falls below 0 the prediction is wrong."""
    score = (image * WEIGHT).flatten(1).sum(1) + OFFSET
    return torch.stack([score, torch.zeros_like(score)], 1)


def only(attack, model=linear, image=None, label=ZERO, index=INDEX):
    return next(attack.attempts(model, images() if image is None else image, label, index))


def to_the_end(queries, **options):
    return BoundaryAttack(threat=FREE, queries=queries, stop_inside=False, **options)


def test_on_a_linear_model_the_distance_comes_near_the_smallest_there_is():
    clean = images()
    least = linear(clean)[:, 0] / torch.linalg.vector_norm(WEIGHT)
    few, many = (FREE.size(only(to_the_end(queries)).image - clean) for queries in (200, 1500))
    assert (many >= least * (1 - 1e-9)).all()
    assert (many <= least * 1.05).all()
    assert (few > many).all()


def test_predictions_are_all_it_sees():
    def predictions_only(image):
        return 3 * F.one_hot(linear(image).argmax(1), 2).double()

    rich, poor = (only(to_the_end(400), model) for model in (linear, predictions_only))
    assert torch.equal(rich.image, poor.image)
    assert torch.equal(rich.forwards, poor.forwards)
    assert rich.backwards.tolist() == [0] * 4


@pytest.mark.parametrize("queries", [1, 2, 30, 150, 700])
def test_nothing_outside_the_box_is_asked_about_and_queries_are_counted_and_kept(queries):
    asked = []
    attempt = only(to_the_end(queries), lambda image: asked.append(image) or linear(image))
    shown = torch.cat(asked)
    assert attempt.forwards.sum() == len(shown)
    assert (attempt.forwards <= queries).all()
    if queries >= 150:
        assert (attempt.forwards > queries - 3).all()
    assert shown.min() >= 0
    assert shown.max() <= 1
    FREE.check(attempt.image, images())


def test_at_a_bright_image_proposals_are_clipped_and_the_walk_still_nears_the_boundary():
    clean = torch.ones(4, 3, 4, 4, dtype=torch.float64) * torch.tensor([1.0, 0.98, 1.0, 0.0]).double().view(4, 1, 1, 1)
    label = linear(clean).argmax(1)
    start, end = (only(to_the_end(queries), linear, clean, label) for queries in (40, 1500))
    assert (end.margin < 0).all()
    assert (FREE.size(end.image - clean) < 0.9 * FREE.size(start.image - clean)).all()


def test_results_do_not_depend_on_batch_size_or_order():
    clean, attack = images(), to_the_end(250)
    together, order = attack(linear, clean, ZERO, INDEX), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(attack(linear, clean[order], ZERO, INDEX[order]), together[order], rtol=0, atol=1e-7)
    for one in range(4):
        part = slice(one, one + 1)
        assert torch.allclose(attack(linear, clean[part], ZERO[part], INDEX[part]), together[part], rtol=0, atol=1e-7)
    assert not torch.allclose(attack(linear, clean, ZERO, INDEX + 1), together, rtol=0, atol=1e-3)


class Samples:
    """A stand-in for a batch: samples nobody asks about."""

    clean, label, index = images(), ZERO, INDEX


def test_proposals_lie_on_the_sphere_and_then_nearer_by_their_length():
    clean, length = Samples.clean, torch.tensor([[0.01, 0.02], [0.3, 0.01], [1e-4, 0.5], [0.05, 1e-6]]).double()
    away = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    around, nearer = to_the_end(9)._proposals(Samples, Draws(0, "a", 0, 0), clean + away, length, 1)
    size, kept = FREE.size(away), FREE.size(around - clean)
    assert torch.allclose(kept, size, rtol=1e-12, atol=0)
    assert torch.allclose(FREE.size(nearer - clean), size * (1 - length[:, 1]), rtol=1e-12, atol=0)
    cosine = ((around - clean) * away).flatten(1).sum(1) / (size * kept)
    assert torch.allclose(cosine, 1 / (1 + length[:, 0].square()).sqrt(), rtol=1e-12, atol=0)
    assert torch.allclose((nearer - clean) / (1 - length[:, 1]).view(4, 1, 1, 1), around - clean, rtol=0, atol=1e-12)


def test_lengths_follow_the_shares_of_full_windows():
    length = torch.tensor([[0.01, 0.02]]).double().repeat(6, 1)
    tried = torch.tensor([[20, 20], [20, 20], [20, 20], [19, 19], [20, 7], [3, 20]]).double()
    won = torch.tensor([[11, 6], [10, 5], [3, 1], [19, 0], [4, 7], [3, 2]]).double()
    changed, later, left = to_the_end(9, window=20, factor=2)._adapted(length, tried, won)
    expected = [[2, 2], [1, 1], [0.5, 0.5], [1, 1], [1, 1], [1, 1]]
    assert torch.allclose(changed / length, torch.tensor(expected).double())
    full = tried == 20
    assert torch.equal(later, torch.where(full, 0, tried))
    assert torch.equal(left, torch.where(full, 0, won))


def test_samples_leave_as_soon_as_a_wrong_image_lies_within_epsilon():
    clean = images()
    least = (linear(clean)[:, 0] / torch.linalg.vector_norm(WEIGHT)).max().item()
    ball = L2(epsilon=1.5 * least)
    early = only(BoundaryAttack(threat=ball, queries=1200))
    late = only(BoundaryAttack(threat=ball, queries=1200, stop_inside=False))
    assert (early.margin < 0).all()
    assert (early.forwards < late.forwards).all()
    assert (ball.size(late.image - clean) < ball.size(early.image - clean)).all()


def test_a_sample_ends_when_its_steps_have_become_too_short():
    attempt = only(to_the_end(2000, converged=0.005))
    assert (attempt.forwards < 1500).all()
    assert len(set(attempt.forwards.tolist())) > 1


def test_at_equal_queries_it_is_not_behind_foolboxs():
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()
    clean, asked = 0.2 + 0.6 * torch.rand(16, 3, 8, 8), []
    with torch.no_grad():
        net[-1].bias -= net(clean).mean(0)
        label = net(clean).argmax(1)
    ours = only(to_the_end(700), net, clean, label, None)
    net.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=20)
    theirs = foolbox.attacks.BoundaryAttack(init_attack=start, steps=700 * 10 // 11)
    found = theirs(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), clean, label, epsilons=None)[0]
    assert sum(asked) > 16 * 690
    assert (ours.forwards <= 700).all()
    assert FREE.size(ours.image - clean).median() <= 1.1 * FREE.size(found - clean).median()


def test_a_description_is_json_and_names_what_makes_the_attack():
    attack = BoundaryAttack(threat=L2(epsilon=0.5), queries=70, seed=3)
    assert json.loads(json.dumps(attack.describe())) == {
        "norm": "l2", "epsilon": "0.5", "steps": 70, "tries": 100, "along": 0.01, "towards": 0.01, "factor": 1.5,
        "window": 10, "converged": 1e-7, "stop_inside": True, "restarts": 1, "objective": "prediction", "seed": 3,
    }  # fmt: skip
    assert attack.passes == 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threat": Linf(epsilon=0.1)}, "boundary knows l2 threats, got linf"),
        ({"queries": 0}, "queries must be >= 1, got 0"),
        ({"tries": 0}, "tries must be >= 1, got 0"),
        ({"window": 0}, "window must be >= 1, got 0"),
        ({"along": 0}, r"along must be in \(0, 1\), got 0"),
        ({"towards": 1}, r"towards must be in \(0, 1\), got 1"),
        ({"converged": -1}, r"converged must be in \(0, 1\), got -1"),
        ({"factor": 1}, "factor must be > 1, got 1"),
    ],
)
def test_mistakes_are_refused_by_the_option_to_change(options, message):
    with pytest.raises(UserError, match=message):
        BoundaryAttack(**{"threat": FREE, **options})
