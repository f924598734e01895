"""The exact sampler: every sample once, on any number of processes."""

from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from robustfg.data.sampler import ExactDistributedSampler

SIZES, WORLDS = st.integers(1, 200), st.integers(1, 16)


def samplers(size: int, world: int) -> list[ExactDistributedSampler]:
    return [ExactDistributedSampler(range(size), num_replicas=world, rank=rank) for rank in range(world)]


@given(SIZES, WORLDS)
def test_no_sample_is_repeated_or_dropped(size, world):
    assume(size >= world)
    assert sorted(sample for sampler in samplers(size, world) for sample in sampler) == list(range(size))


@given(SIZES, WORLDS)
def test_ranks_differ_in_length_by_at_most_one(size, world):
    assume(size >= world)
    lengths = [len(sampler) for sampler in samplers(size, world)]
    assert sum(lengths) == size
    assert max(lengths) - min(lengths) <= 1


@given(SIZES, WORLDS)
def test_the_announced_length_is_the_number_of_samples(size, world):
    assert all(len(sampler) == len(list(sampler)) for sampler in samplers(size, world))


@given(SIZES, WORLDS, st.integers(1, 9))
def test_the_epoch_changes_nothing(size, world, epoch):
    for sampler in samplers(size, world):
        before = list(sampler)
        sampler.set_epoch(epoch)
        assert list(sampler) == before


def test_samples_are_dealt_out_in_turn():
    assert [list(sampler) for sampler in samplers(7, 3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_the_stock_sampler_repeats_a_sample_where_ours_does_not():
    stock = [DistributedSampler(range(7), num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]
    assert sum(len(list(sampler)) for sampler in stock) == 8
    assert sum(len(list(sampler)) for sampler in samplers(7, 2)) == 7


def test_it_is_a_distributed_sampler_so_that_lightning_leaves_it_alone():
    assert all(isinstance(sampler, DistributedSampler) for sampler in samplers(5, 2))


def test_a_loader_follows_it():
    batches = [DataLoader(range(7), batch_size=2, sampler=sampler) for sampler in samplers(7, 2)]
    assert [[batch.tolist() for batch in loader] for loader in batches] == [[[0, 2], [4, 6]], [[1, 3], [5]]]
