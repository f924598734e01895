import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.core.errors import UserError
from robustfg.losses import GaussianMixture
from robustfg.losses.means import Drawn, Simplex, follow


@settings(deadline=None, max_examples=30)
@given(classes=st.integers(2, 12), spare=st.integers(0, 5), distance=st.floats(0.1, 50))
def test_simplex_means_all_lie_at_one_distance_around_zero(classes, spare, distance):
    means = Simplex(distance=distance)(classes, classes - 1 + spare).double()
    apart = torch.cdist(means, means).square()[~torch.eye(classes, dtype=torch.bool)]
    assert torch.allclose(apart, torch.full_like(apart, distance), rtol=1e-4)
    assert means.mean(0).abs().max() < 1e-6 * math.sqrt(distance) + 1e-6
    # so that the cosine of any two is -1 / (K - 1), the smallest that K vectors can have in common
    unit = means / means.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.t())[~torch.eye(classes, dtype=torch.bool)]
    assert torch.allclose(cosines, torch.full_like(cosines, -1 / (classes - 1)), atol=1e-4)


def test_a_simplex_uses_all_dimensions():
    torch.manual_seed(0)
    assert (Simplex()(4, 9).abs().amax(0) > 1e-4).all()


def test_a_simplex_of_one_class_is_the_origin():
    assert torch.equal(Simplex()(1, 3), torch.zeros(1, 3))


def test_drawn_means_have_the_length_asked_for():
    torch.manual_seed(0)
    means = Drawn(squared_length=10)(4000, 64)
    assert means.square().sum(1).mean().item() == pytest.approx(10, rel=0.02)


def test_impossible_means_are_refused_by_name():
    with pytest.raises(UserError, match=r"a simplex of 5 classes needs loss.embedding_dim >= 4, got 3"):
        GaussianMixture(channels=3, num_classes=5, initial_means=Simplex())
    with pytest.raises(UserError, match=r"loss.initial_means.distance must be > 0, got 0"):
        Simplex(distance=0)
    with pytest.raises(UserError, match=r"loss.initial_means.squared_length must be > 0, got -1"):
        Drawn(squared_length=-1)
    with pytest.raises(UserError, match=r"loss.means_momentum must be in \[0, 1\), or null to learn the means, got 1"):
        GaussianMixture(channels=3, num_classes=5, means_momentum=1)


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (
            torch.randn(6, 3, generator=generator, dtype=torch.float64),
            torch.randint(4, (6,), generator=generator),
        )


def test_moving_means_are_moving_averages_of_the_class_means_of_batches():
    means = torch.randn(4, 3, dtype=torch.float64)
    expected = means.tolist()
    for embedding, label in batches(5):
        follow(means, embedding, label, 0.8)
        for k in set(label.tolist()):
            mine = [row for row, own in zip(embedding.tolist(), label.tolist(), strict=True) if own == k]
            for d in range(3):
                expected[k][d] = 0.8 * expected[k][d] + 0.2 * sum(row[d] for row in mine) / len(mine)
    assert torch.allclose(means, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_moving_means_move_in_training_alone_and_have_no_gradient():
    torch.manual_seed(0)
    module = GaussianMixture(channels=3, num_classes=4, means_momentum=0.5).double()
    assert not list(module.parameters())
    assert not module.groups()
    assert "means" in module.state_dict()
    (embedding, label), start = next(batches(1)), module.means.clone()
    feature_map = embedding[:, :, None, None].requires_grad_()
    module.eval().loss(module(feature_map), label)
    assert torch.equal(module.means, start)
    terms = module.train().loss(module(feature_map), label)
    moved = start.clone()
    follow(moved, embedding, label, 0.5)
    assert torch.equal(module.means, moved)
    terms["loss"].backward()  # after the means have moved: with the means that the logits were made with
    learned = GaussianMixture(channels=3, num_classes=4).double()
    learned.means.data = start
    again = embedding[:, :, None, None].requires_grad_()
    learned.loss(learned(again), label)["loss"].backward()
    assert torch.equal(feature_map.grad, again.grad)


def test_a_moving_mean_stays_a_buffer_of_the_same_storage():
    """DDP and whatever keeps buffers over a step hold the tensor itself."""
    module = GaussianMixture(channels=3, num_classes=4, means_momentum=0.5).double()
    before = module.means
    embedding, label = next(batches(1))
    module.loss(module(embedding[:, :, None, None]), label)
    assert module.means is before


@pytest.mark.process
def test_moving_means_of_two_processes_are_those_of_one(tmp_path):
    start = torch.arange(12, dtype=torch.float64).view(4, 3)
    port_file = tmp_path / "store"
    torch.multiprocessing.spawn(rank_of_two, args=(str(port_file), str(tmp_path), start), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = start.clone()
    for embedding, label in batches(3):
        follow(expected, embedding, label, 0.7)
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-12)


def rank_of_two(rank, store, folder, start):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    means = start.clone()
    for embedding, label in batches(3):
        follow(means, embedding[rank::2], label[rank::2], 0.7)
    torch.save(means, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
