"""CIFAR in torchvision's layout, a handful of images large."""

import pickle

import numpy as np
import pytest
from torchvision import datasets

from robustfg.core.errors import UserError
from robustfg.data.cifar import Cifar10, Cifar100

GENERATOR = np.random.default_rng(0)
FILES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
BATCHES = {name: GENERATOR.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8) for name in FILES}
LABELS = {name: [number, (number + 3) % 10] for number, name in enumerate(FILES)}


def store(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


@pytest.fixture
def _any_checksum(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)


@pytest.fixture
def cifar10(tmp_path, _any_checksum):
    folder = tmp_path / "cifar-10-batches-py"
    for name, images in BATCHES.items():
        store(folder / name, {"data": images.reshape(2, -1), "labels": LABELS[name]})
    store(folder / "batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    return tmp_path


def test_ten_classes_are_read_in_order(cifar10):
    source = Cifar10(root=str(cifar10))
    assert source.classes == tuple(f"class {number}" for number in range(10))
    assert source.val is None
    assert source.genera is None
    assert source.train.labels.tolist() == [label for name in FILES[:5] for label in LABELS[name]]
    assert source.test.labels.tolist() == LABELS["test_batch"]
    assert source.test.labels.dtype == np.int64
    stored = np.concatenate([BATCHES[name] for name in FILES[:5]])
    for position, image in enumerate(stored):
        assert np.array_equal(source.train.image(position), image.transpose(1, 2, 0))
    assert np.array_equal(source.test.image(1), BATCHES["test_batch"][1].transpose(1, 2, 0))


def test_keys_are_unique_over_both_splits(cifar10):
    source = Cifar10(root=str(cifar10))
    keys = [*source.train.keys, *source.test.keys]
    assert len(set(keys)) == len(keys) == 12


@pytest.mark.usefixtures("_any_checksum")
def test_a_hundred_classes_are_read_by_their_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for name, labels in (("train", [99, 5]), ("test", [42, 0])):
        store(
            folder / name,
            {"data": BATCHES["test_batch"].reshape(2, -1), "fine_labels": labels, "coarse_labels": [1, 1]},
        )
    store(folder / "meta", {"fine_label_names": [f"fine {number}" for number in range(100)]})
    source = Cifar100(root=str(tmp_path))
    assert len(source.classes) == 100
    assert source.train.labels.tolist() == [99, 5]
    assert source.test.labels.tolist() == [42, 0]


@pytest.mark.parametrize(("reader", "folder"), [(Cifar10, "cifar-10-batches-py"), (Cifar100, "cifar-100-python")])
def test_a_missing_data_set_is_told_with_folder_and_remedy(tmp_path, reader, folder):
    with pytest.raises(UserError) as error:
        reader(root=str(tmp_path))
    for text in (f"data.root={tmp_path}", folder, reader.reader.url, "data.download=true"):
        assert text in str(error.value)


def test_a_damaged_file_is_told_by_its_checksum(cifar10, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UserError, match="missing or damaged"):
        Cifar10(root=str(cifar10))


def test_a_download_that_fails_is_told_like_a_missing_data_set(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(UserError, match=r"data\.root"):
        Cifar10(root=str(tmp_path), download=True)
