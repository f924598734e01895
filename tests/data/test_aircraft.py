"""FGVC-Aircraft in its official layout, four variants large."""

import re

import numpy as np
import pytest
from archives import AIRCRAFT, build_aircraft, replace_line, stored
from torchvision.datasets import FGVCAircraft

from robustfg.core.errors import UserError
from robustfg.data.aircraft import Aircraft
from robustfg.data.annotations import Box


@pytest.fixture
def folder(tmp_path):
    return build_aircraft(tmp_path)


def read(folder, **options):
    return Aircraft(root=str(folder), **({"expect_official": False} | options))


@pytest.mark.parametrize("level", ["variant", "family", "manufacturer"])
@pytest.mark.parametrize("official_val", [False, True])
def test_torchvision_reads_the_same_but_for_the_banner(folder, level, official_val):
    source = read(folder.parent, level=level, official_val=official_val)
    splits = {"train": source.train, "val": source.val} if official_val else {"trainval": source.train}
    assert official_val or source.val is None
    for name, split in (splits | {"test": source.test}).items():
        theirs = FGVCAircraft(folder.parent, split=name, annotation_level=level)
        assert source.classes == tuple(theirs.classes)
        assert len(theirs) == len(split.labels) > 0
        for position, (image, label) in enumerate(theirs):
            assert label == split.labels[position]
            assert np.array_equal(np.array(image)[:-20], split.image(position))


def test_coarser_levels_are_the_taxonomy(folder):
    families, manufacturers = zip(*AIRCRAFT.values(), strict=True)
    source = read(folder)
    assert list(source.taxonomy.items()) == [("family", families), ("manufacturer", manufacturers)]
    assert source.genera == families
    family = read(folder, level="family")
    assert family.classes == ("Boeing 707", "Boeing 737", "F-16")
    assert family.taxonomy == {"manufacturer": ("Boeing", "Boeing", "Lockheed Martin")}
    assert read(folder, level="manufacturer").taxonomy == {}
    assert read(folder, level="manufacturer").genera is None


def test_boxes_count_from_one_and_stay_above_the_banner(folder):
    split = read(folder).test
    assert split.box(0) == Box(4, 5, 12, 6)
    whole = stored(folder / split.keys[0])
    assert np.array_equal(read(folder, crop="box").test.image(0), whole[5:11, 4:16])
    name = split.keys[0][-11:-4]
    rows = (folder / "data" / "images_box.txt").read_text().splitlines()
    replace_line(folder / "data" / "images_box.txt", rows.index(f"{name} 5 6 16 11"), f"{name} 5 6 16 30")
    assert np.array_equal(read(folder, crop="box").test.image(0), whole[5:18, 4:16])


def test_the_official_splits_are_disjoint_and_a_leak_is_told(folder):
    source = read(folder, official_val=True)
    train, val, test = (set(split.keys) for split in (source.train, source.val, source.test))
    assert len(train | val | test) == len(train) + len(val) + len(test) == 16
    leaked = source.test.keys[0][-11:-4]
    with (folder / "data" / "images_variant_trainval.txt").open("a") as file:
        file.write(f"{leaked} 707-320\n")
    with pytest.raises(UserError, match=rf"{leaked}\.jpg is in train and in test"):
        read(folder)


@pytest.mark.parametrize(
    ("level", "official_val", "counts"),
    [("variant", False, (100, 6667)), ("family", False, (70, 6667)), ("manufacturer", True, (30, 3334))],
)
def test_the_counts_of_the_paper_are_expected(folder, monkeypatch, level, official_val, counts):
    asked = []
    monkeypatch.setattr("robustfg.data.official.Official.check", lambda self, *_, **__: asked.append(self))
    Aircraft(root=str(folder), level=level, official_val=official_val)
    assert (asked[0].classes, asked[0].images["train"]) == counts
    assert (asked[0].images["val"], asked[0].images["test"]) == (3333, 3333)
    monkeypatch.undo()
    with pytest.raises(UserError, match="but FGVC-Aircraft has"):
        Aircraft(root=str(folder), level=level)


@pytest.mark.parametrize(
    "name", ["variants.txt", "images_variant_trainval.txt", "images_family_trainval.txt", "images_box.txt"]
)
def test_missing_files_are_named_with_the_root(folder, name):
    (folder / "data" / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*data/{name}"):
        read(folder)


def test_an_unknown_variant_an_unboxed_image_and_an_odd_level_are_told(folder):
    with pytest.raises(UserError, match=r"data\.source\.level must be variant, family or manufacturer, got model"):
        read(folder, level="model")
    replace_line(folder / "data" / "images_variant_test.txt", 0, "1000002 Spitfire")
    with pytest.raises(UserError, match=r"images_variant_test\.txt names the class Spitfire"):
        read(folder)
    replace_line(folder / "data" / "images_box.txt", 0, None)
    with pytest.raises(UserError, match=r"images_box\.txt has no row for the image 1000000"):
        read(folder)


def test_the_download_is_torchvisions(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(FGVCAircraft, "_download", lambda reader: asked.append(reader.root))
    folder = build_aircraft(tmp_path)
    for root in (tmp_path, folder):
        assert len(read(root, download=True).train.labels) == 12
    assert asked == [tmp_path] * 2
