"""Oxford Flowers-102 in its official layout, with few images."""

import re

import numpy as np
import pytest
from archives import build_flowers, picture, put_image, stored
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import Flowers102

from robustfg.core.errors import UserError
from robustfg.data.flowers import FLOWERS, Flowers


@pytest.fixture
def folder(tmp_path):
    return build_flowers(tmp_path)


def read(folder, **options):
    return Flowers(root=str(folder), **({"expect_official": False} | options))


def test_torchvision_reads_the_same(folder, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5=None: True)
    source = read(folder.parent)
    for name, split in (("train", source.train), ("val", source.val), ("test", source.test)):
        theirs = Flowers102(folder.parent, split=name)
        assert len(theirs) == len(split.labels) > 0
        for position, (image, label) in enumerate(theirs):
            assert label == split.labels[position]
            assert np.array_equal(np.array(image), split.image(position))


def test_labels_count_from_zero_and_all_three_splits_are_official(folder):
    source = read(folder)
    assert source.train.labels.tolist() == list(range(102))
    assert source.val.labels.tolist() == [0, 1, 2]
    assert source.test.labels.tolist() == [101, 1, 0]
    assert source.test.keys == ["jpg/image_00106.jpg", "jpg/image_00107.jpg", "jpg/image_00108.jpg"]
    assert len(set(source.classes)) == 102
    assert (source.classes[0], source.classes[42], source.classes[101]) == (
        "pink primrose", "sword lily", "blackberry lily",
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(Flowers102, "classes"), reason="this torchvision has no names")
def test_names_are_torchvisions():
    from robustfg.data.flowers import NAMES

    assert [name.strip() for name in " ".join(NAMES.split()).split(";")] == list(Flowers102.classes)


def test_the_counts_of_the_paper_are_expected(folder):
    assert FLOWERS.images == {"train": 1020, "val": 1020, "test": 6149}
    with pytest.raises(UserError, match="102 train images, but Oxford Flowers-102 has 1,020"):
        Flowers(root=str(folder))


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat", "jpg/image_00107.jpg"])
def test_missing_files_are_named_with_the_root(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*{name}"):
        read(folder)


def test_labels_and_images_that_count_from_zero_are_told(folder):
    savemat(folder / "imagelabels.mat", {"labels": np.arange(108, dtype=np.uint8)[None] % 102})
    with pytest.raises(UserError, match=r"imagelabels\.mat names the class 0; the classes are 1 to 102"):
        read(folder)
    build = {"trnid": np.arange(0, 5)[None], "valid": np.arange(5, 8)[None], "tstid": np.arange(8, 11)[None]}
    savemat(folder / "imagelabels.mat", {"labels": np.arange(1, 12, dtype=np.uint8)[None]})
    savemat(folder / "setid.mat", build)
    with pytest.raises(UserError, match=r"setid\.mat names the image 0; the images are 1 to 11"):
        read(folder)


def test_a_test_image_among_the_training_images_is_told(folder):
    ids = {"trnid": np.arange(1, 103)[None], "valid": np.arange(103, 106)[None], "tstid": np.arange(102, 109)[None]}
    savemat(folder / "setid.mat", ids)
    with pytest.raises(UserError, match=r"image_00102\.jpg is in train and in test"):
        read(folder)


def test_a_picture_is_turned_as_its_exif_data_say(folder):
    path = folder / "jpg" / "image_00001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    put_image(path, picture(4, (8, 6)), exif=exif)
    assert np.array_equal(read(folder).train.image(0), np.rot90(stored(path), -1))


def test_the_download_is_torchvisions(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Flowers102, "download", lambda reader: asked.append(reader.root))
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5=None: True)
    folder = build_flowers(tmp_path)
    for root in (tmp_path, folder):
        assert len(read(root, download=True).val.labels) == 3
    assert asked == [tmp_path] * 2
