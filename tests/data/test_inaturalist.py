"""iNaturalist's JSON with three species."""

import json
import re

import numpy as np
import pytest
from archives import build_inaturalist, stored

from robustfg.core.errors import UserError
from robustfg.data.inaturalist import INaturalist


@pytest.fixture
def folder(tmp_path):
    return build_inaturalist(tmp_path)


def read(folder, **options):
    return INaturalist(root=str(folder), **options)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_labels_follow_the_numbers_of_the_categories_and_val_is_the_test(folder):
    source = read(folder.parent)
    assert source.classes == ("Turdus migratorius", "Parus major", "Turdus merula")
    assert source.train.labels.tolist() == [2, 2, 0, 0, 1, 1]
    assert source.test.labels.tolist() == [2, 0, 1]
    assert source.val is None
    assert source.test.keys[1] == "val/00003_x/30.jpg"
    assert np.array_equal(source.test.image(1), stored(folder / "val/00003_x/30.jpg"))


def test_every_rank_that_all_categories_have_is_a_level_the_nearest_first(folder):
    source = read(folder)
    assert list(source.taxonomy) == ["genus", "family", "order", "class", "phylum", "kingdom", "supercategory"]
    assert source.genera == source.taxonomy["genus"] == ("Turdus", "Parus", "Turdus")
    assert source.taxonomy["family"] == ("Turdidae", "Paridae", "Turdidae")
    change(folder / "train.json", lambda content: content["categories"][0].pop("genus"))
    assert next(iter(read(folder).taxonomy)) == "family"


def test_categories_without_training_images_are_no_classes(folder):
    change(folder / "train.json", lambda content: content["categories"].append({"id": 9, "name": "Corvus corax"}))
    assert len(read(folder).classes) == 3


def test_other_files_may_be_named(folder):
    (folder / "val.json").rename(folder / "val2018.json")
    assert read(folder, val="val2018.json").test.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["train.json", "val.json", "val/00003_x/30.jpg"])
def test_missing_files_are_named_with_the_root(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*{name}"):
        read(folder)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda c: c["annotations"].pop(), r"image 500 has no annotation"),
        (lambda c: c["annotations"].append({"image_id": 500, "category_id": 3}), r"500 has the categories 7 and 3"),
        (lambda c: c["annotations"][0].update(category_id=9), r"names the class 9; the classes are 3 to 7"),
        (lambda c: c.pop("categories"), r"val\.json is no list of images, annotations and categories"),
        (lambda c: c["images"][0].update(file_name="train/00007_x/70.jpg"), r"70\.jpg is in train and in test"),
    ],
)  # fmt: skip
def test_faults_of_a_file_are_told(folder, edit, told):
    change(folder / "val.json", edit)
    with pytest.raises(UserError, match=told):
        read(folder)
