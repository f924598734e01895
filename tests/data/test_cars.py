"""Stanford Cars in the layout of its devkit, four classes large."""

import re

import numpy as np
import pytest
from archives import CAR_CLASSES, build_cars, picture, put_image, stored, struct
from scipy.io import loadmat, savemat
from torchvision.datasets import StanfordCars

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, privileged_of
from robustfg.data.cars import CARS, Cars


def read(root, **options):
    return Cars(root=str(root), **({"expect_official": False} | options))


@pytest.mark.parametrize("withlabels", [".", "devkit"])
def test_labels_count_from_zero_and_name_their_class(tmp_path, withlabels):
    folder = build_cars(tmp_path, withlabels)
    source = read(tmp_path)
    assert source.classes == CAR_CLASSES
    assert source.train.labels.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert source.test.labels.tolist() == [1, 0, 3, 2]
    assert source.test.keys[2] == "cars_test/00003.jpg"
    assert np.array_equal(source.test.image(2), stored(folder / "cars_test" / "00003.jpg"))


def test_torchvision_reads_the_same(tmp_path):
    build_cars(tmp_path)
    source = read(tmp_path)
    for name, split in (("train", source.train), ("test", source.test)):
        theirs = StanfordCars(tmp_path, split=name)
        assert source.classes == tuple(theirs.classes)
        for position, (image, label) in enumerate(theirs):
            assert label == split.labels[position]
            assert np.array_equal(np.array(image), split.image(position))


def test_the_make_is_the_first_word_or_one_of_the_makes_of_two_words(tmp_path):
    build_cars(tmp_path)
    source = read(tmp_path)
    assert source.taxonomy == {"make": ("AM General", "Acura", "Acura", "Land Rover")}
    assert source.genera == source.taxonomy["make"]


def test_boxes_count_from_one_and_include_their_last_pixel(tmp_path):
    build_cars(tmp_path)
    whole, cut = read(tmp_path), read(tmp_path, crop="box")
    assert whole.train.box(0) == Box(4, 5, 12, 6)
    assert np.array_equal(cut.test.image(1), whole.test.image(1)[5:11, 4:16])
    assert privileged_of(whole) is None
    assert "cropped" in privileged_of(cut)


def test_the_counts_of_the_paper_are_expected(tmp_path):
    build_cars(tmp_path)
    assert (CARS.classes, CARS.images) == (196, {"train": 8144, "test": 8041})
    with pytest.raises(UserError, match="4 classes, but Stanford Cars has 196"):
        Cars(root=str(tmp_path))


def test_test_annotations_without_labels_are_told(tmp_path):
    folder = build_cars(tmp_path, withlabels=None)
    with pytest.raises(UserError, match=rf"data\.root={folder}: cars_test_annos_withlabels\.mat .*no labels"):
        read(tmp_path)
    plain = (folder / "devkit" / "cars_test_annos.mat").read_bytes()
    (folder / "cars_test_annos_withlabels.mat").write_bytes(plain)
    with pytest.raises(UserError, match=r"cars_test_annos_withlabels\.mat has no field class"):
        read(tmp_path)


def test_labels_that_count_from_zero_are_told(tmp_path):
    path = build_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
    table = loadmat(path)["annotations"][0]
    columns = {name: [row[name].item() for row in table] for name in table.dtype.names}
    columns["class"] = [number - 1 for number in columns["class"]]
    savemat(path, {"annotations": struct(**columns)})
    with pytest.raises(UserError, match=r"cars_train_annos\.mat names the class 0; the classes are 1 to 4"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test/00002.jpg"])
def test_missing_files_are_named_with_the_root(tmp_path, name):
    folder = build_cars(tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(tmp_path))}.*{name}"):
        read(tmp_path)


def test_a_damaged_table_is_named(tmp_path):
    path = build_cars(tmp_path) / "devkit" / "cars_train_annos.mat"
    for content in (b"", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cars_train_annos\.mat is damaged"):
            read(tmp_path)


def test_grey_images_come_as_rgb(tmp_path):
    folder = build_cars(tmp_path)
    grey = picture(3)[..., 0]
    put_image(folder / "cars_train" / "00001.jpg", grey, quality=100)
    assert np.abs(read(tmp_path).train.image(0).astype(int) - grey[..., None]).max() <= 3
