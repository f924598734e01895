"""Samplers: exact for evaluation, reproducible for training."""

from collections.abc import Iterator, Sized

from torch.utils.data import Dataset, DistributedSampler


class ExactDistributedSampler(DistributedSampler[int]):
    """Deals the samples out in turn, rank r taking r, r + world, r + 2 world, ...; nothing is repeated or dropped.

    The stock ``DistributedSampler`` repeats samples to make all ranks equally long, which falsifies counts. Being its
    subclass, this one is left alone by Lightning. Ranks may differ in length by one, so nothing may communicate inside
    the batch loop.
    """

    def __init__(self, dataset: Dataset[object], *, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        assert isinstance(dataset, Sized)
        self.positions = range(rank, len(dataset), num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)


class EpochSampler(DistributedSampler[int]):
    """Shuffles anew every epoch, as a function of seed and epoch, and says in each item which epoch it belongs to.

    Items are ``epoch * len(dataset) + position``, so that loader processes, which live longer than an epoch, know it.

    Attributes:
        skip: samples of this rank to leave out of the next pass, which an interrupted epoch has already seen.
    """

    skip: int = 0

    def __iter__(self) -> Iterator[int]:
        assert isinstance(self.dataset, Sized)
        items = [self.epoch * len(self.dataset) + position for position in super().__iter__()]
        skipped, self.skip = self.skip, 0
        return iter(items[skipped:])
