"""The data module: a source's splits as exact, reproducible loaders."""

import math
import os
import signal
from collections.abc import Mapping, Sequence
from types import FrameType

import numpy as np
import pytorch_lightning as pl
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from robustfg.core.errors import OptionsByName, UserError, refuse_outside
from robustfg.core.types import Batch
from robustfg.data.annotations import WithFiles, origin_of
from robustfg.data.hygiene import Trained
from robustfg.data.sampler import EpochSampler, ExactDistributedSampler
from robustfg.data.samples import FitSquare, Samples, Transform
from robustfg.data.source import Source, Split
from robustfg.data.splits import Positions, balanced_subset, fingerprint, manifest, stratified
from robustfg.data.stored import Members, Splits

SMALLEST = 2
"""Side in pixels below which images cannot be brought to size."""


class DataModule(OptionsByName, pl.LightningDataModule):
    """Training, validation and test samples of one source.

    Where the source gives no validation split it is carved from the training split, class by class, never from test.

    Args:
        source: the data set.
        image_size: side of the square images that the model sees.
        batch_size: samples per training step and process.
        eval_batch_size: samples per evaluation batch and process; None for ``batch_size``.
        val_fraction: share of every training class carved out for validation.
        split_seed: chooses which; apart from the training seed, so that seeds are compared on the same samples.
        augment: one transform, or several in a row, applied to uint8 training images ``(3, H, W)`` before they are
            brought to the final size.
        crop_ratio: how much of the shorter side the centre crop keeps when images must be resized.
        keep_aspect: False to stretch images to the square.
        cache: decode every image once and keep it in memory.
        num_workers: loader processes; None for none where images are cached and one per core, at most 8, elsewhere.
        max_test_samples: evaluate on a fixed, class-balanced subset of the test split.
        seed: orders and augments the training samples, together with the epoch.

    Attributes:
        evaluated: the split that ``trainer.test`` reads.
        trained: the images that the model was trained or chosen on, by split; by default ``"train"`` and ``"val"``.
            Empty where a run of ours has kept no record of them; None for a model that is no run's.
        changed: by split, how many files are not what they were when the run began.
        remarks: what must be read together with results on these samples.
    """

    def __init__(
        self,
        *,
        source: Source,
        image_size: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        augment: Transform | Sequence[Transform] = (),
        crop_ratio: float = 1.0,
        keep_aspect: bool = True,
        cache: bool = False,
        num_workers: int | None = None,
        max_test_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least_one = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for option, value in (at_least_one | {"max_test_samples": max_test_samples}).items():
            if value is not None and value < 1:
                raise UserError(f"data.{option} must be >= 1, got {value}")
        for option, value in {"num_workers": num_workers, "split_seed": split_seed, "seed": seed}.items():
            refuse_outside(f"data.{option}", value, least=0)
        refuse_outside("data.image_size", image_size, least=SMALLEST)
        if not 0 < crop_ratio <= 1:
            raise UserError(f"data.crop_ratio must be in (0, 1], got {crop_ratio}")
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must be in (0, 1), got {val_fraction}")
        self.source, self.image_size, self.cache, self.seed = source, image_size, cache, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers = num_workers
        self.fit_square = FitSquare(size=image_size, crop_ratio=crop_ratio, keep_aspect=keep_aspect)
        augmentations = [augment] if callable(augment) else augment
        self.augmented = v2.Compose([*augmentations, self.fit_square])
        self.max_test_samples = max_test_samples
        self.positions = self._split(val_fraction, split_seed)
        self.evaluated = "test"
        self.stored: Splits | None = None
        self.remarks: list[str] = []
        self.trained: dict[str, Trained] | None = self.training_images()
        self.changed: dict[str, int] = {}
        self._described: dict[str, dict[str, object]] = {}
        self._batches_seen = 0
        self._samples: dict[str, Samples] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.source.classes

    def describe(self) -> dict[str, dict[str, object]]:
        """Size and fingerprint of every split, and of its files where images are files."""
        return {name: self.described(name) for name in self.positions}

    def described(self, name: str) -> dict[str, object]:
        """The same of one split."""
        if name not in self._described:
            self._described[name] = described(self.split_of(name), self.positions[name])
        return self._described[name]

    def found(self) -> list[str]:
        """Which data there is, in lines for the user."""
        classes = ", ".join(self.classes[:6]) + (", …" if len(self.classes) > 6 else "")
        lines = [*getattr(self.source, "found", ()), f"{len(self.classes):,} classes: {classes}"]
        counts = []
        for name, positions in self.positions.items():
            each = np.bincount(np.asarray(self.split_of(name).labels)[positions], minlength=len(self.classes))
            span = f"{each.min():,}" if each.min() == each.max() else f"{each.min():,} to {each.max():,}"
            counts.append(f"{name} {len(positions):,} ({span} a class)")
        how = "" if self.source.val is not None else "; val is a part of train"
        how = "; the splits are those stored with the run" if self.stored is not None else how
        return [*lines, f"images: {', '.join(counts)}{how}", *self.remarks]

    def splits(self) -> Splits:
        """Which samples belong to which split, to be stored with a run."""
        if self.stored is not None:
            return self.stored
        whole = self.positions | {"test": np.arange(len(self.source.test.labels))}
        members = {name: members_of(self.split_of(name), positions) for name, positions in whole.items()}
        return Splits(self.classes, origin_of(self.source), self.source.val is None, members)

    def training_images(self) -> dict[str, Trained]:
        """The images of ``"train"`` and ``"val"``."""
        return {name: Trained((self.split_of(name), self.positions[name])) for name in ("train", "val")}

    def refuse_small(self, world: int, splits: Sequence[str]) -> None:
        """Raises ``UserError`` where a split has fewer samples than there are processes, or train lacks a class."""
        for name in splits:
            if (n := len(self.positions[name])) < world:
                instead = {
                    "train": "lower data.source.test_fraction or data.val_fraction",
                    "val": "raise data.val_fraction",
                    "test": "raise data.source.test_fraction or data.max_test_samples",
                }
                raise UserError(f"data: the {name} split has {n} samples for {world} processes; {instead[name]}")
        if "train" in splits:
            there = set(np.asarray(self.source.train.labels)[self.positions["train"]].tolist())
            if lacking := [name for label, name in enumerate(self.classes) if label not in there]:
                raise UserError(
                    f"data: no training image of the class {lacking[0]} is left; add images, or lower data.val_fraction"
                )

    def batches(self, split: str, world: int) -> int:
        """Batches of a process in an epoch of training, or in a pass over another split."""
        n = len(self.positions[split])
        if split != "train":
            return math.ceil(n / (world * self.eval_batch_size))
        return max(n // (world * self.batch_size), 1)

    def keys(self, split: str) -> Mapping[int, str]:
        """Where every sample of a split comes from, by id."""
        names = self.split_of(split).keys
        return {int(position): names[position] for position in self.positions[split]}

    def take(self, stored: Splits, positions: dict[str, Positions], remarks: list[str]) -> None:
        """Takes positions that ``following.follow`` has found for the splits of a run."""
        self.stored, self.positions, self.remarks = stored, positions, remarks
        self._described, self._samples = {}, {}
        self.trained = self.training_images()

    def samples(self, split: str) -> Samples:
        """The samples of ``"train"`` (augmented), ``"val"`` or ``"test"``; decoded once where ``cache`` is set."""
        if split not in self._samples:
            transform = self.augmented if split == "train" else self.fit_square
            seed = self.seed if split == "train" else None
            self._samples[split] = Samples(
                self.split_of(split), self.positions[split], transform, cache=self.cache, seed=seed
            )
        return self._samples[split]

    def train_dataloader(self) -> DataLoader[Batch]:
        samples = self.samples("train")
        if len(samples) == 0:
            raise UserError("data: the training split is empty; lower data.source.test_fraction")
        world, rank = self._world()
        sampler = EpochSampler(samples, num_replicas=world, rank=rank, shuffle=True, seed=self.seed * 1_000_003)
        sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)  # loader processes ask for indices at once
        sampler.skip, self._batches_seen = self._batches_seen * self.batch_size, 0
        return self._loader(samples, sampler, self.batch_size, drop_last=len(samples) >= world * self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """How much of the running epoch has been seen, for checkpoints in the middle of one."""
        if self.trainer is None:
            return {"batches_seen": 0}
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"batches_seen": seen % max(int(self.trainer.num_training_batches), 1)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches_seen = state_dict["batches_seen"]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._exact("val", self.samples("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._exact(self.evaluated, self.samples(self.evaluated))

    def survey_dataloader(self) -> DataLoader[Batch]:
        """The un-augmented training split, every sample once over all processes."""
        return self._exact("train", self.samples("train").under(self.fit_square))

    def unknown_dataloader(self, images: Split) -> DataLoader[Batch]:
        """Images of another source, brought to the same size, every one once over all processes."""
        samples = Samples(images, np.arange(len(images.labels)), self.fit_square, cache=False)
        return self._exact("unknown", samples)

    def _exact(self, split: str, samples: Samples) -> DataLoader[Batch]:
        world, rank = self._world()
        if len(samples) < world:
            raise UserError(f"data: the {split} split has {len(samples)} samples for {world} processes")
        sampler = ExactDistributedSampler(samples, num_replicas=world, rank=rank)
        return self._loader(samples, sampler, self.eval_batch_size, drop_last=False)

    def _loader(
        self, samples: Samples, sampler: DistributedSampler[int], batch_size: int, *, drop_last: bool
    ) -> DataLoader[Batch]:
        workers = self._workers()
        return DataLoader(
            samples,
            batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=unmoved_by_signals,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        here = self.trainer.num_devices if self.trainer else 1
        return 0 if self.cache else min(8, (os.cpu_count() or 1) // here)

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _split(self, val_fraction: float, split_seed: int) -> dict[str, Positions]:
        labels = np.asarray(self.source.train.labels)
        test = np.arange(len(self.source.test.labels))
        if self.max_test_samples is not None:
            test = balanced_subset(np.asarray(self.source.test.labels), self.max_test_samples)
        if self.source.val is not None:
            return {"train": np.arange(len(labels)), "val": np.arange(len(self.source.val.labels)), "test": test}
        train, val = stratified(labels, val_fraction, split_seed)
        return {"train": train, "val": val, "test": test}

    def split_of(self, name: str) -> Split:
        """The source's split in which the positions of a split lie."""
        if name == "test":
            return self.source.test
        return self.source.val if name == "val" and self.source.val is not None else self.source.train


def unmoved_by_signals(worker: int) -> None:
    """Lets a loader's process outlive Ctrl-C and the first SIGTERM, which reach all processes of a run.

    Its run ends it once training has come to a place from where it can be continued.
    """
    pl_worker_init_function(worker)

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)


def described(split: Split, positions: Positions) -> dict[str, object]:
    """Size and fingerprint of samples of a split, and of their files where images are files."""
    facts = {"n": len(positions), "ids_sha256": fingerprint(positions, split.keys, split.labels)}
    if isinstance(split, WithFiles):
        keys = [split.keys[position] for position in positions]
        facts["manifest_sha256"] = manifest(keys, split.sizes[positions], split.labels[positions])
    return facts


def members_of(split: Split, positions: Positions) -> Members:
    """Some samples of a split, by name."""
    names = split.keys
    sizes = split.sizes[positions] if isinstance(split, WithFiles) else None
    return Members(positions, [names[p] for p in positions.tolist()], np.asarray(split.labels)[positions], sizes)
