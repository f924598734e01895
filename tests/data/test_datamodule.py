"""The data module: exact, reproducible loaders with stable ids."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.data.arrays import ArraySplit
from robustfg.data.datamodule import DataModule
from robustfg.data.folder import Folder
from robustfg.data.samples import FitSquare

SIZE = 8


def split(name, labels):
    """Images whose first pixel holds their position."""
    labels = np.asarray(labels, np.int64)
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return ArraySplit(images, labels, name)


def source(*, val=None, train=(20, 20, 10), test=(9, 7, 5)):
    return SimpleNamespace(
        classes=("a", "b", "c"),
        genera=None,
        train=split("train", np.repeat(np.arange(len(train)), train)),
        test=split("test", np.repeat(np.arange(len(test)), test)),
        val=None if val is None else split("val", val),
    )


def module(data=None, **options):
    defaults = {"image_size": SIZE, "batch_size": 4, "num_workers": 0}
    return DataModule(source=data or source(), **{**defaults, **options})


def merged(loader):
    return Batch(*(torch.cat(parts) for parts in zip(*loader, strict=True)))


def as_rank(data, world, rank):
    device = torch.device("cpu")
    strategy = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(world_size=world, global_rank=rank, strategy=strategy, current_epoch=0)
    return data


def test_batches_are_float_images_in_the_unit_range_with_integer_labels_and_ids():
    data = module()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert type(batch) is Batch
            assert batch.image.dtype == torch.float32
            assert batch.label.dtype == batch.index.dtype == torch.int64
            assert batch.image.shape[1:] == (3, SIZE, SIZE)
            assert batch.label.shape == batch.index.shape == batch.image.shape[:1]
            assert 0 <= batch.image.min() <= batch.image.max() <= 1


def test_test_batches_are_the_stored_bytes_over_255():
    data = module()
    batch = merged(data.test_dataloader())
    stored = torch.from_numpy(data.source.test.images).permute(0, 3, 1, 2)
    assert torch.equal(batch.image, stored.float() / 255)
    assert batch.label.tolist() == data.source.test.labels.tolist()
    assert batch.index.tolist() == list(range(21))


def test_ids_are_positions_in_the_source_split_whatever_the_split_seed():
    for seed in range(3):
        data = module(split_seed=seed)
        for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
            batch = merged(loader)
            assert (batch.image[:, 0, 0, 0] * 255).round().long().tolist() == batch.index.tolist()
            assert set(batch.index.tolist()) <= set(data.positions[name].tolist())
            assert batch.label.tolist() == data.source.train.labels[batch.index].tolist()


def test_validation_is_carved_from_train_and_never_from_test():
    data = module(val_fraction=0.2)
    train, val = (set(data.keys(name).values()) for name in ("train", "val"))
    assert not train & val
    assert train | val == set(data.source.train.keys)
    assert np.bincount(data.source.train.labels[data.positions["val"]]).tolist() == [4, 4, 2]
    assert set(data.keys("test").values()) == set(data.source.test.keys)


def test_the_split_depends_on_its_own_seed_alone():
    first = module(seed=0, split_seed=3).positions["val"]
    assert np.array_equal(module(seed=9, split_seed=3).positions["val"], first)
    assert not np.array_equal(module(seed=0, split_seed=4).positions["val"], first)


def test_a_given_validation_split_is_used_whole_and_nothing_is_carved():
    data = module(source(val=[0, 1, 2, 2]))
    assert data.positions["train"].tolist() == list(range(50))
    assert list(data.keys("val").values()) == list(data.source.val.keys)
    batch = merged(data.val_dataloader())
    assert batch.label.tolist() == [0, 1, 2, 2]
    assert torch.equal(batch.image, torch.from_numpy(data.source.val.images).permute(0, 3, 1, 2) / 255)


def test_the_description_counts_and_fingerprints_every_split():
    data = module(source(val=[0, 1]), max_test_samples=3)
    described = data.describe()
    assert {name: described[name]["n"] for name in described} == {"train": 50, "val": 2, "test": 3}
    lines = b"0\tval/000000\t0\n1\tval/000001\t1\n"
    assert described["val"]["ids_sha256"] == hashlib.sha256(lines).hexdigest()


def test_caching_changes_no_image():
    plain, cached = (merged(module(cache=cache).test_dataloader()) for cache in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(plain, cached, strict=True))


def test_a_cached_image_is_decoded_once_and_survives_being_read():
    data = source()
    calls = []
    decode = ArraySplit.image
    data.test = SimpleNamespace(
        labels=data.test.labels,
        keys=data.test.keys,
        image=lambda position, stored=data.test: (calls.append(position), decode(stored, position))[1],
    )
    cached = module(data, cache=True)
    first, second = (merged(cached.test_dataloader()) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert sorted(calls) == list(range(21))


def test_workers_change_no_test_batch():
    alone, helped = (list(module(num_workers=workers).test_dataloader()) for workers in (0, 2))
    assert len(alone) == len(helped) == 6
    for one, other in zip(alone, helped, strict=True):
        assert isinstance(other, Batch)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_the_test_split_without_repeating_or_dropping(world):
    ids = []
    for rank in range(world):
        ids += merged(as_rank(module(), world, rank).test_dataloader()).index.tolist()
    assert sorted(ids) == list(range(21))


def test_processes_share_the_training_split_in_whole_batches():
    ids = [merged(as_rank(module(), 2, rank).train_dataloader()).index.tolist() for rank in range(2)]
    assert len(ids[0]) == len(ids[1]) == 20  # 45 samples: 23 a rank, of which five batches of four are whole
    assert not set(ids[0]) & set(ids[1])


def test_more_processes_than_samples_are_refused():
    with pytest.raises(UserError, match="21 samples for 22 processes"):
        as_rank(module(), 22, 0).test_dataloader()


def test_training_order_changes_with_epoch_and_seed_and_repeats_with_both():
    def order(seed, epoch):
        loader = module(seed=seed, batch_size=1).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return merged(loader).index.tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 5) for epoch in (0, 1)}) == 4
    assert sorted(order(0, 0)) == sorted(order(5, 1))


def test_a_training_split_smaller_than_a_batch_still_gives_one():
    data = module(batch_size=64)
    assert len(merged(data.train_dataloader()).index) == len(data.positions["train"]) == 45


def test_augmentation_touches_training_images_alone_and_sees_bytes():
    seen = []

    def blacken(image):
        seen.append((image.dtype, tuple(image.shape)))
        return torch.zeros_like(image)

    data = module(augment=[blacken])
    assert merged(data.val_dataloader()).image.max() > 0
    assert merged(data.test_dataloader()).image.max() > 0
    assert not seen
    assert merged(data.train_dataloader()).image.max() == 0
    assert set(seen) == {(torch.uint8, (3, SIZE, SIZE))}


def test_a_subset_of_the_test_split_is_class_balanced_and_keeps_its_ids():
    data = module(max_test_samples=7)
    batch = merged(data.test_dataloader())
    assert sorted(np.bincount(batch.label).tolist()) == [2, 2, 3]
    assert batch.label.tolist() == data.source.test.labels[batch.index].tolist()
    assert (batch.image[:, 0, 0, 0] * 255).round().long().tolist() == batch.index.tolist()
    assert set(batch.index.tolist()) <= set(module(max_test_samples=12).positions["test"].tolist())


def test_a_subset_larger_than_the_test_split_is_all_of_it():
    assert module(max_test_samples=1000).positions["test"].tolist() == list(range(21))


def test_the_evaluated_split_can_be_exchanged():
    data = module()
    data.evaluated = "val"
    assert torch.equal(merged(data.test_dataloader()).index, merged(data.val_dataloader()).index)


def test_evaluation_batches_may_have_their_own_size():
    assert [len(batch.index) for batch in module(eval_batch_size=10).test_dataloader()] == [10, 10, 1]
    assert [len(batch.index) for batch in module().test_dataloader()] == [4] * 5 + [1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0),
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("max_test_samples", 0),
        ("max_test_samples", -1),
        ("num_workers", -1),
        ("val_fraction", 0),
        ("val_fraction", 1),
        ("val_fraction", float("nan")),
        ("crop_ratio", 0),
        ("crop_ratio", 1.2),
    ],
)
def test_a_bad_option_is_refused_by_name(option, value):
    with pytest.raises(UserError, match=rf"data\.{option} must be .* got"):
        module(**{option: value})


def test_an_empty_training_split_is_told_with_its_remedy(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / name / "1.png")
    data = module(Folder(root=str(tmp_path), test_fraction=1))
    assert len(merged(data.test_dataloader()).index) == 2
    with pytest.raises(UserError, match=r"lower data\.source\.test_fraction"):
        data.train_dataloader()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_also_from_a_worker(tmp_path, monkeypatch, workers):
    for path in (tmp_path / name / f"{number}.jpg" for name in "ab" for number in range(4)):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(path)
    broken = tmp_path / "b" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:80])
    data = module(Folder(root=str(tmp_path), test_fraction=1), num_workers=workers)
    batches = iter(data.test_dataloader())
    with pytest.raises(UserError) as error:
        list(batches)
    assert str(broken) in str(error.value)
    if workers:  # torch waits 5 s for each worker that saw an error
        monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
        batches._shutdown_workers()


def picture(height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def by_pillow(image, shape):
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def alike(image, expected):
    return image.shape == expected.shape and (image.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 30), (10, 17)])
@pytest.mark.parametrize(("crop_ratio", "shorter"), [(1.0, 24), (0.75, 32)])
def test_the_shorter_side_is_scaled_and_the_centre_cut_out(shape, crop_ratio, shorter):
    image = picture(*shape)
    height, width = shape
    scaled = [int(side * shorter / min(height, width)) for side in shape]
    resized = by_pillow(image, scaled)
    top, left = (round((side - 24) / 2.0) for side in scaled)
    expected = resized[:, top : top + 24, left : left + 24]
    assert alike(FitSquare(size=24, crop_ratio=crop_ratio)(image), expected)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (10, 17)])
def test_stretching_keeps_the_whole_image(shape):
    image = picture(*shape)
    expected = by_pillow(image, (24, 24))
    assert alike(FitSquare(size=24, crop_ratio=0.5, keep_aspect=False)(image), expected)


def test_a_round_thing_stays_round_unless_stretched():
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, 10:30, 30:50] = 255
    for keep_aspect, width in ((True, 20), (False, 10)):
        fitted = FitSquare(size=40, keep_aspect=keep_aspect)(image)[0] > 127
        assert (fitted.any(1).sum(), fitted.any(0).sum()) == (20, width)


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_an_image_that_fits_passes_untouched(keep_aspect):
    image = picture(24, 24)
    assert FitSquare(size=24, crop_ratio=0.5, keep_aspect=keep_aspect)(image) is image


def test_the_fit_is_torchvisions_evaluation_transform():
    image = picture(50, 70)
    stock = v2.Compose([v2.Resize(round(32 / 0.875), antialias=True), v2.CenterCrop(32)])
    assert torch.equal(FitSquare(size=32, crop_ratio=0.875)(image), stock(image))
