"""NABirds in its official layout, four classes large."""

import re

import numpy as np
import pytest
from archives import build_nabirds, put_text, replace_line, stored

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, privileged_of
from robustfg.data.nabirds import NABIRDS, NABirds


@pytest.fixture
def folder(tmp_path):
    return build_nabirds(tmp_path)


def read(folder, **options):
    return NABirds(root=str(folder), **({"expect_official": False} | options))


def test_classes_are_the_nodes_with_images_in_the_order_of_their_numbers(folder):
    source = read(folder.parent)
    assert source.classes == (
        "Anhinga", "Red-tailed Hawk (Dark morph)", "Red-tailed Hawk (Light morph adult)", "Bald Eagle",
    )  # fmt: skip
    assert source.train.labels.tolist() == [1, 1, 0, 0, 3, 3, 2, 2]
    assert source.test.labels.tolist() == [1, 0, 3, 2]
    assert source.test.keys[1] == "images/0003/00000003000040008000000000000000.jpg"
    assert np.array_equal(source.test.image(1), stored(folder / source.test.keys[1]))


def test_the_hierarchy_gives_the_node_above_and_the_node_below_the_root(folder):
    source, hawks = read(folder), "Hawks, Kites, Eagles, and Allies"
    assert source.taxonomy == {
        "parent": ("Anhinga", "Red-tailed Hawk", "Red-tailed Hawk", hawks),
        "group": ("Anhinga", hawks, hawks, hawks),
    }
    assert list(source.taxonomy) == ["parent", "group"]
    assert source.genera == source.taxonomy["parent"]


def test_parts_and_boxes_follow_the_crop(folder):
    whole, cut = read(folder), read(folder, crop="box")
    assert whole.train.keypoints(0) == {"bill": (6, 7), "left wing": (20, 8)}
    assert cut.train.keypoints(0) == {"bill": (2, 2)}
    assert whole.train.box(0) == Box(4, 5, 12, 6)
    assert np.array_equal(cut.test.image(0), whole.test.image(0)[5:11, 4:16])
    assert (privileged_of(whole), privileged_of(cut) is None) == (None, False)


def test_the_counts_of_the_paper_are_expected(folder):
    assert (NABIRDS.classes, NABIRDS.images) == (555, {"train": 23929, "test": 24633})
    with pytest.raises(UserError, match="4 classes, but NABirds has 555"):
        NABirds(root=str(folder))


@pytest.mark.parametrize("name", ["hierarchy.txt", "classes.txt", "train_test_split.txt", "parts/part_locs.txt"])
def test_missing_files_are_named_with_the_root(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*{name}"):
        read(folder)


def test_a_label_that_its_folder_denies_is_told(folder):
    name = (folder / "images.txt").read_text().split()[0]
    replace_line(folder / "image_class_labels.txt", 0, f"{name} 818")
    with pytest.raises(UserError, match=r"image_class_labels\.txt gives 0817/.* the class 818"):
        read(folder)


def test_a_circle_in_the_hierarchy_and_a_nameless_class_are_told(folder):
    hierarchy = (folder / "hierarchy.txt").read_text()
    put_text(folder / "hierarchy.txt", hierarchy + "0 1")
    with pytest.raises(UserError, match=r"hierarchy\.txt: the node \d+ is above itself"):
        read(folder)
    (folder / "hierarchy.txt").write_text(hierarchy)
    replace_line(folder / "classes.txt", 6, None)
    with pytest.raises(UserError, match=r"classes\.txt does not name the class 900"):
        read(folder)
