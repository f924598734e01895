"""Stanford Dogs in its official layout, three breeds large."""

import re

import numpy as np
import pytest
from archives import build_dogs, cell, put_text, stored
from PIL import Image
from scipy.io import savemat

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, WithBox, privileged_of
from robustfg.data.dogs import DOGS, Dogs


@pytest.fixture
def folder(tmp_path):
    return build_dogs(tmp_path)


def read(folder, **options):
    return Dogs(root=str(folder), **({"expect_official": False} | options))


def test_the_lists_give_the_split_and_folders_the_names(folder):
    source = read(folder.parent)
    assert source.classes == ("Chihuahua", "Japanese spaniel", "wire-haired fox terrier")
    assert (source.genera, source.taxonomy, source.val) == (None, {}, None)
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.test.labels.tolist() == [0, 1, 2]
    assert source.test.keys[1] == "Images/n02085782-Japanese_spaniel/n02085782_0.jpg"
    assert np.array_equal(source.test.image(1), stored(folder / source.test.keys[1]))


def test_the_box_is_around_all_dogs(folder):
    whole, cut = read(folder), read(folder, crop="box")
    assert whole.train.box(0) == Box(4, 5, 6, 4)
    assert whole.test.box(0) == Box(4, 5, 12, 6)
    assert np.array_equal(cut.test.image(0), whole.test.image(0)[5:11, 4:16])
    assert privileged_of(cut) is not None


def test_without_annotations_no_box_is_promised_and_no_crop_given(tmp_path):
    folder = build_dogs(tmp_path, annotated=False)
    assert not isinstance(read(folder).train, WithBox)
    with pytest.raises(UserError, match=rf"data\.root={folder}: Annotation is missing"):
        read(folder, crop="box")


def test_the_counts_of_the_paper_are_expected(folder):
    assert (DOGS.classes, DOGS.images) == (120, {"train": 12000, "test": 8580})
    with pytest.raises(UserError, match="3 classes, but Stanford Dogs has 120"):
        Dogs(root=str(folder))


@pytest.mark.parametrize("name", ["train_list.mat", "test_list.mat", "Images/n02085620-Chihuahua/n02085620_0.jpg"])
def test_missing_files_are_named_with_the_root(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*{name}"):
        read(folder)


def test_a_missing_and_a_damaged_annotation_are_named(folder):
    path = folder / "Annotation" / "n02085620-Chihuahua" / "n02085620_0"
    for text in ("<annotation>", "<annotation></annotation>", "<annotation><bndbox></bndbox></annotation>"):
        put_text(path, text)
        with pytest.raises(UserError, match=re.escape(f"{path} is no annotation")):
            read(folder).test.box(0)
    path.unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}: Annotation/.*n02085620_0 is missing"):
        read(folder)


def test_a_label_that_its_folder_denies_is_told(folder):
    labels = np.array([[1.0], [1.0]])
    files = cell(["n02085620-Chihuahua/a.jpg", "n02085782-Japanese_spaniel/n02085782_0.jpg"])
    savemat(folder / "test_list.mat", {"file_list": files, "labels": labels})
    with pytest.raises(UserError, match=r"test_list\.mat gives n02085782.* the class 1, Chihuahua"):
        read(folder)


def test_transparency_in_a_file_named_jpg_is_dropped(folder):
    path = folder / read(folder).train.keys[0]
    Image.new("RGBA", (24, 18), (200, 30, 10, 128)).save(path, format="PNG")  # the archive has one
    assert np.array_equal(read(folder).train.image(0), np.full((18, 24, 3), (200, 30, 10)))
