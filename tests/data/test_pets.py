"""Oxford-IIIT Pet in its official layout, three breeds large."""

import re

import numpy as np
import pytest
from archives import build_pets, put_text, replace_line
from torchvision.datasets import OxfordIIITPet

from robustfg.core.errors import UserError
from robustfg.data.annotations import WithMask
from robustfg.data.pets import PETS, Pets


@pytest.fixture
def folder(tmp_path):
    return build_pets(tmp_path)


def read(folder, **options):
    return Pets(root=str(folder), **({"expect_official": False} | options))


def test_torchvision_reads_the_same(folder):
    source = read(folder.parent)
    for name, split in (("trainval", source.train), ("test", source.test)):
        theirs = OxfordIIITPet(folder.parent, split=name, target_types=["category", "segmentation"])
        assert [name.title() for name in source.classes] == theirs.classes
        assert len(theirs) == len(split.labels) > 0
        for position, (image, (label, trimap)) in enumerate(theirs):
            assert label == split.labels[position]
            assert np.array_equal(np.array(image), split.image(position))
            assert np.array_equal(np.array(trimap) == 1, split.mask(position))


def test_cats_and_dogs_are_the_coarser_level(folder):
    source = read(folder)
    assert source.classes == ("Abyssinian", "american bulldog", "Maine Coon")
    assert source.taxonomy == {"species": ("cat", "dog", "cat")}
    assert source.genera == ("cat", "dog", "cat")
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.val is None


def test_the_mask_leaves_out_the_border(folder):
    mask = read(folder).test.mask(0)
    assert mask.dtype == bool
    assert mask.sum() == 8 * 10
    assert mask[5:13, 7:17].all()


def test_without_trimaps_no_mask_is_promised(tmp_path):
    assert not isinstance(read(build_pets(tmp_path, trimaps=False)).test, WithMask)


def test_the_counts_of_the_paper_are_expected(folder):
    assert (PETS.classes, PETS.images) == (37, {"train": 3680, "test": 3669})
    with pytest.raises(UserError, match="3 classes, but Oxford-IIIT Pet has 37"):
        Pets(root=str(folder))


@pytest.mark.parametrize(
    "name",
    [
        *("annotations/trainval.txt", "annotations/test.txt", "images/Maine_Coon_2.jpg"),
        "annotations/trimaps/Maine_Coon_2.png",
    ],
)
def test_missing_files_are_named_with_the_root(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*{name}"):
        read(folder)


def test_a_label_that_its_name_denies_and_an_unknown_species_are_told(folder):
    path = folder / "annotations" / "test.txt"
    whole = path.read_text().splitlines()
    replace_line(path, 0, "Abyssinian_2 2 1 1")
    with pytest.raises(UserError, match=r"test\.txt gives Abyssinian_2 the class 2"):
        read(folder)
    put_text(path, *whole[1:], "Abyssinian_2 1 3 1")
    with pytest.raises(UserError, match="the species 3"):
        read(folder)


def test_a_test_image_among_the_training_images_is_told(folder):
    with (folder / "annotations" / "trainval.txt").open("a") as file:
        file.write("Abyssinian_2 1 1 1\n")
    with pytest.raises(UserError, match=r"Abyssinian_2\.jpg is in train and in test"):
        read(folder)


def test_the_download_is_torchvisions(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(OxfordIIITPet, "_download", lambda reader: asked.append(reader.root))
    folder = build_pets(tmp_path)
    for root in (tmp_path, folder):
        assert len(read(root, download=True).train.labels) == 6
    assert asked == [tmp_path] * 2
