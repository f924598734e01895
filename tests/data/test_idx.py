"""IDX files, written by hand."""

import gzip
import struct

import numpy as np
import pytest

from robustfg.core.errors import UserError
from robustfg.data.idx import FashionMnist, Mnist, read_idx

TRAIN = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
TEST = np.random.default_rng(1).integers(0, 256, (2, 4, 3), dtype=np.uint8)
CONTENT = {
    "train-images-idx3-ubyte": TRAIN,
    "train-labels-idx1-ubyte": np.asarray([3, 1, 4, 1, 5], np.uint8),
    "t10k-images-idx3-ubyte": TEST,
    "t10k-labels-idx1-ubyte": np.asarray([9, 2], np.uint8),
}


def encoded(array):
    """Two zero bytes, 8 for unsigned bytes, the number of dimensions, each as a big-endian int32, the bytes."""
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder, *, gzipped=False, content=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in content.items():
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(encoded(array)))
        else:
            (folder / name).write_bytes(encoded(array))


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("below", [".", "raw", "MNIST/raw"])
def test_files_are_found_plain_or_gzipped_in_all_usual_places(tmp_path, below, gzipped):
    write(tmp_path / below, gzipped=gzipped)
    source = Mnist(root=str(tmp_path))
    assert source.train.labels.tolist() == [3, 1, 4, 1, 5]
    assert source.test.labels.tolist() == [9, 2]
    assert source.train.labels.dtype == np.int64
    assert source.val is None
    for split, images in ((source.train, TRAIN), (source.test, TEST)):
        for position, image in enumerate(images):
            assert np.array_equal(split.image(position), np.stack([image] * 3, axis=2))


def test_fashion_mnist_looks_below_its_own_name(tmp_path):
    write(tmp_path / "FashionMNIST" / "raw")
    assert FashionMnist(root=str(tmp_path)).test.labels.tolist() == [9, 2]
    with pytest.raises(UserError, match="MNIST/raw"):
        Mnist(root=str(tmp_path))


def test_classes_are_torchvisions():
    from torchvision import datasets

    assert FashionMnist.default_classes == tuple(datasets.FashionMNIST.classes)
    assert [name[0] for name in datasets.MNIST.classes] == list(Mnist.default_classes)


def test_keys_name_split_and_position(tmp_path):
    write(tmp_path)
    source = Mnist(root=str(tmp_path))
    assert list(source.train.keys) == [f"train/00000{position}" for position in range(5)]
    assert list(source.test.keys) == ["test/000000", "test/000001"]


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "digits")
    assert len(Mnist(root="~/digits").train.labels) == 5


@pytest.mark.parametrize("missing", CONTENT)
def test_a_missing_file_is_told_with_folder_name_and_remedy(tmp_path, missing):
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError) as error:
        Mnist(root=str(tmp_path))
    for text in (f"data.root={tmp_path}", missing, "data.download=true"):
        assert text in str(error.value)


def test_download_hands_the_folder_to_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(Mnist, "reader", staticmethod(lambda folder, download: write(folder / "raw")))
    assert len(Mnist(root=str(tmp_path), download=True).train.labels) == 5


def damaged(kind):
    good = encoded(TRAIN)
    return {
        "empty": b"",
        "two bytes": good[:2],
        "cut header": good[:9],
        "cut body": good[:-1],
        "one byte too many": good + b"\0",
        "html page": b"<!DOCTYPE html><html>not found</html>",
        "floats": struct.pack(">HBBi", 0, 0x0D, 1, 1) + bytes(4),
        "wrong magic": b"\1" + good[1:],
    }[kind]


KINDS = ["empty", "two bytes", "cut header", "cut body", "one byte too many", "html page", "floats", "wrong magic"]


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named(tmp_path, kind, gzipped):
    path = tmp_path / ("images.gz" if gzipped else "images")
    path.write_bytes(gzip.compress(damaged(kind)) if gzipped else damaged(kind))
    with pytest.raises(UserError, match="damaged") as error:
        read_idx(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content", [encoded(TRAIN), b"", gzip.compress(encoded(TRAIN))[:-9]], ids=["plain", "empty", "cut"]
)
def test_a_gz_file_that_is_not_whole_gzip_is_named(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_idx(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("at", [10, -6], ids=["deflate block", "checksum"])
def test_a_gz_file_with_damaged_bytes_is_named(tmp_path, at):
    content = bytearray(gzip.compress(encoded(TRAIN)))
    content[at] = 0xFF
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.gz is damaged"):
        read_idx(tmp_path / "images.gz")


def test_unequal_numbers_of_images_and_labels_are_refused(tmp_path):
    write(tmp_path, content={**CONTENT, "t10k-labels-idx1-ubyte": np.asarray([9, 2, 2], np.uint8)})
    with pytest.raises(UserError, match="2 t10k images but 3 labels") as error:
        Mnist(root=str(tmp_path))
    assert str(tmp_path) in str(error.value)
