"""CUB-200-2011 in its official layout, four classes large."""

import re

import numpy as np
import pytest
from archives import CUB_CLASSES, CUB_PARTS, build_cub, picture, put_image, put_text, replace_line, stored
from PIL import Image

from robustfg.core.errors import UserError
from robustfg.data.annotations import Box, WithBox, WithKeypoints, WithMask, privileged_of, taxonomy_of
from robustfg.data.cub import CUB, Cub
from robustfg.data.datamodule import DataModule


@pytest.fixture
def folder(tmp_path):
    return build_cub(tmp_path)


def read(folder, **options):
    return Cub(root=str(folder), **({"expect_official": False} | options))


def test_the_official_split_is_read_in_the_order_of_the_file(folder):
    source = read(folder.parent)
    assert source.classes == (
        "Black footed Albatross", "Laysan Albatross", "Sooty Albatross", "Groove billed Ani",
    )  # fmt: skip
    assert source.val is None
    assert source.test.labels.tolist() == [0, 1, 2, 3]
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert source.test.keys[1] == "images/002.Laysan_Albatross/Laysan_Albatross_0000_31.jpg"
    assert not set(source.train.keys) & set(source.test.keys)
    for split in (source.train, source.test):
        assert split.labels.dtype == np.int64
        assert [CUB_CLASSES[label] for label in split.labels] == [key.split("/")[1] for key in split.keys]
        for position, key in enumerate(split.keys):
            assert np.array_equal(split.image(position), stored(folder / key))


def test_the_folder_itself_may_be_named(folder):
    assert read(folder).train.keys == read(folder.parent).train.keys


def test_the_counts_of_the_paper_are_expected_unless_told_otherwise(folder):
    assert (CUB.classes, CUB.images["train"] + CUB.images["test"]) == (200, 11788)
    with pytest.raises(UserError, match=r"4 classes, but CUB-200-2011 has 200; .*data\.expect_official=false"):
        Cub(root=str(folder))


@pytest.mark.parametrize(("train", "test", "told"), [(8, 5, "4 test images"), (7, 4, "8 train images"), (8, 4, None)])
def test_one_image_more_or_less_is_told(folder, monkeypatch, train, test, told):
    official = CUB.__class__(**(vars(CUB) | {"classes": 4, "images": {"train": train, "test": test}}))
    monkeypatch.setattr("robustfg.data.cub.CUB", official)
    if told is None:
        Cub(root=str(folder))
    else:
        with pytest.raises(UserError, match=f"{told}, but CUB-200-2011 has"):
            Cub(root=str(folder))


def test_visible_parts_are_told_in_pixels_of_the_image(folder):
    split = read(folder).train
    assert isinstance(split, WithKeypoints)
    expected = {name: (n, 5 + n % 7) for n, name in enumerate(CUB_PARTS, 1) if n % 2}
    assert split.keypoints(3) == expected


def test_a_crop_cuts_the_box_out_at_test_time_too_and_says_so(folder):
    whole, cut = read(folder), read(folder, crop="box")
    assert privileged_of(whole) is None
    assert privileged_of(cut) == "images are cropped to the annotated box, at test time too"
    for split, full in ((cut.train, whole.train), (cut.test, whole.test)):
        assert isinstance(split, WithBox)
        assert full.box(2) == Box(4, 5, 12, 6)
        assert split.box(2) == Box(0, 0, 12, 6)
        assert np.array_equal(split.image(2), full.image(2)[5:11, 4:16])
        image = split.image(2)
        for name, (x, y) in split.keypoints(2).items():
            x0, y0 = full.keypoints(2)[name]
            assert np.array_equal(image[int(y), int(x)], full.image(2)[int(y0), int(x0)])
        inside = {name for name, (x, y) in full.keypoints(2).items() if 4 <= x < 16 and 5 <= y < 11}
        assert set(split.keypoints(2)) == inside != set(full.keypoints(2))


@pytest.mark.parametrize(
    ("box", "rows", "columns", "inside"),
    [
        ("3.4 5.7 10.2 6.0", slice(5, 12), slice(3, 14), Box(0.4, 0.7, 10.2, 6.0)),
        ("-2.0 -3.0 9.0 8.0", slice(0, 5), slice(0, 7), Box(-2, -3, 9, 8)),
        ("20.0 10.0 50.0 50.0", slice(10, 18), slice(20, 24), Box(0, 0, 50, 50)),
    ],
)
def test_a_box_is_widened_to_whole_pixels_and_kept_inside_the_image(folder, box, rows, columns, inside):
    replace_line(folder / "bounding_boxes.txt", 1, f"2 {box}")
    split = read(folder, crop="box").train
    assert np.array_equal(split.image(0), read(folder).train.image(0)[rows, columns])
    assert split.box(0) == pytest.approx(inside)


def test_a_box_outside_the_image_is_told(folder):
    replace_line(folder / "bounding_boxes.txt", 1, "2 100.0 5.0 12.0 6.0")
    with pytest.raises(UserError, match=r"data\.crop=box: .*_0001_1\.jpg lies outside the image of 24 x 18"):
        read(folder, crop="box").train.image(0)


@pytest.mark.parametrize("beside", [True, False])
def test_segmentations_are_used_where_they_are(tmp_path, beside):
    folder = build_cub(tmp_path, segmentations=True)
    if not beside:
        (tmp_path / "segmentations").rename(folder / "segmentations")
    mask = read(folder).test.mask(1)
    assert (mask.shape, mask.dtype) == ((18, 24), bool)
    assert np.argwhere(mask).min(0).tolist() == [6, 6]
    assert mask.sum() == 4 * 6
    cut = read(folder, crop="box").test.mask(1)
    assert cut.shape == (6, 12)
    assert np.array_equal(cut, mask[5:11, 4:16])


@pytest.mark.parametrize("crop", [None, "box"])
def test_a_missing_segmentation_is_named_at_once(tmp_path, crop):
    folder = build_cub(tmp_path, segmentations=True)
    path = tmp_path / "segmentations" / CUB_CLASSES[2] / "Sooty_Albatross_0000_62.png"
    path.unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}: .*{path.name} is missing"):
        read(folder, crop=crop)


def test_without_segmentations_no_mask_is_promised(folder):
    assert not isinstance(read(folder).test, WithMask)
    assert isinstance(read(build_cub(folder.parent / "other", segmentations=True)).test, WithMask)


def test_without_a_taxonomy_the_group_is_the_last_word_of_the_common_name(folder):
    source = read(folder)
    assert taxonomy_of(source) == {"group": ("Albatross", "Albatross", "Albatross", "Ani")}
    assert source.genera == source.taxonomy["group"]


def test_a_taxonomy_is_read_where_the_user_gives_one(folder):
    lines = [f"{name},genus {n},family {n // 2}" for n, name in enumerate(CUB_CLASSES)]
    put_text(folder / "taxonomy.csv", "class,genus,family", *reversed(lines))
    source = read(folder)
    assert list(source.taxonomy) == ["genus", "family"]
    assert source.taxonomy["genus"] == source.genera == ("genus 0", "genus 1", "genus 2", "genus 3")
    assert source.taxonomy["family"] == ("family 0", "family 0", "family 1", "family 1")


def test_a_taxonomy_without_families_has_one_level_and_a_gap_is_told(folder):
    put_text(folder / "taxonomy.csv", "class,genus", *(f"{name},g" for name in CUB_CLASSES))
    assert list(read(folder).taxonomy) == ["genus"]
    put_text(folder / "taxonomy.csv", "class,genus", *(f"{name},g" for name in CUB_CLASSES[1:]))
    with pytest.raises(UserError, match=r"taxonomy\.csv has no genus for the class 001\.Black_footed_Albatross"):
        read(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"),
        *("parts/parts.txt", "parts/part_locs.txt"),
    ],
)
def test_a_missing_table_is_named_with_the_root(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"data\.root={re.escape(str(folder))}.*{name}"):
        read(folder)


def test_a_missing_image_is_named_at_once(folder):
    (folder / "images/003.Sooty_Albatross/Sooty_Albatross_0001_63.jpg").unlink()
    with pytest.raises(UserError, match=r"data\.root=.*Sooty_Albatross_0001_63\.jpg is missing"):
        read(folder)


def test_labels_that_count_from_zero_are_told(folder):
    path = folder / "image_class_labels.txt"
    shifted = [f"{n} {int(label) - 1}" for n, label in (line.split() for line in path.read_text().splitlines())]
    put_text(path, *shifted)
    with pytest.raises(UserError, match=r"image_class_labels\.txt names the class 0; the classes are 1 to 4"):
        read(folder)


def test_a_label_that_its_folder_denies_is_told(folder):
    replace_line(folder / "image_class_labels.txt", 1, "2 3")
    with pytest.raises(UserError, match=r"_0001_1\.jpg the class 3 \(003\.Sooty_Albatross\)"):
        read(folder)


def test_an_image_listed_for_training_and_for_test_is_told(folder):
    first = (folder / "images.txt").read_text().split()[1]
    replace_line(folder / "images.txt", 1, f"2 {first}")
    with pytest.raises(UserError, match=rf"{first} is in train and in test"):
        read(folder)


def test_an_image_without_a_row_and_a_row_without_its_fields_are_told(folder):
    replace_line(folder / "bounding_boxes.txt", 4, "5 1.0 2.0")
    with pytest.raises(UserError, match=r"bounding_boxes\.txt, line 5: expected 5 fields"):
        read(folder)
    replace_line(folder / "bounding_boxes.txt", 4, None)
    with pytest.raises(UserError, match=r"bounding_boxes\.txt has no row for image 5"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *(("classes.txt", "x 002.Laysan_Albatross"), ("image_class_labels.txt", "2 one")),
        *(("bounding_boxes.txt", "2 4.0 5.0 wide 6.0"), ("parts/parts.txt", "2nd beak")),
        *(("parts/part_locs.txt", "1 second 0.0 0.0 0"), ("parts/part_locs.txt", "1 2 0.0 0,0 1")),
    ],
)
def test_a_field_that_is_no_number_is_told_with_its_table(folder, name, line):
    replace_line(folder / name, 1, line)
    with pytest.raises(UserError, match=rf"{re.escape(str(folder / name))}: '.*' is no number"):
        read(folder)


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "parts/part_locs.txt", "taxonomy.csv"])
def test_a_table_that_is_no_text_is_told(folder, name):
    (folder / name).write_bytes(b"1 \xff\xfe\n")
    with pytest.raises(UserError, match=rf"{re.escape(str(folder / name))} is damaged"):
        read(folder)


def test_tables_with_a_byte_order_mark_are_read(folder):
    put_text(folder / "taxonomy.csv", "class,genus", *(f"{name},g" for name in CUB_CLASSES))
    plain = read(folder)
    for name in ("images.txt", "classes.txt", "bounding_boxes.txt", "parts/parts.txt", "taxonomy.csv"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    marked = read(folder)
    assert (marked.classes, marked.taxonomy) == (plain.classes, {"genus": ("g",) * 4})
    assert marked.train.keypoints(0) == plain.train.keypoints(0)


def test_odd_crops_and_roots_are_refused_by_name(folder, tmp_path):
    with pytest.raises(UserError, match=r"data\.crop must be null or box, got square"):
        read(folder, crop="square")
    with pytest.raises(UserError, match=r"data\.root is not set"):
        Cub(root=None)
    with pytest.raises(
        UserError,
        match=rf"data\.root={tmp_path / 'nowhere'}: images\.txt .* CUB_200_2011\.tgz .* or set data\.download=true",
    ):
        Cub(root=str(tmp_path / "nowhere"))


def test_grey_and_cmyk_images_come_as_rgb(folder):
    first, second = (folder / key for key in read(folder).train.keys[:2])
    Image.new("L", (24, 18), 77).save(first)
    Image.new("CMYK", (24, 18), (51, 102, 204, 51)).save(second, quality=100)
    split = read(folder, crop="box").train
    assert np.array_equal(split.image(0), np.full((6, 12, 3), 77))
    assert np.abs(split.image(1) - np.array([163.2, 122.4, 40.8])).max() <= 2


def test_an_image_cut_short_is_named(folder):
    split = read(folder).train
    path = folder / split.keys[0]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read(folder).train.image(0)


def test_exif_data_turn_neither_image_nor_box(folder):
    path = folder / read(folder).train.keys[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    put_image(path, picture(5), exif=exif)
    split = read(folder, crop="box").train
    assert np.array_equal(split.image(0), stored(path)[5:11, 4:16])


def test_the_download_gives_torchvision_urls_and_checksums_and_leaves_alone_what_is_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "robustfg.data.cub.download_and_extract_archive", lambda url, root, md5: asked.append((url[-20:], root, md5))
    )
    folder = build_cub(tmp_path)
    read(tmp_path, download=True)
    read(folder, download=True)
    segmentations = "4d47ba1228eae64f2fa547c47bc65255"
    assert [(root, md5) for _, root, md5 in asked] == [(str(tmp_path), segmentations)] * 2
    asked.clear()
    with pytest.raises(UserError, match="images.txt"):
        read(tmp_path / "empty", download=True)
    assert asked[0][0].endswith("CUB_200_2011.tgz")
    assert asked[0][2] == "97eceeb196236b17998738112f37df78"


def test_a_download_that_fails_is_told_with_the_remedy(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("robustfg.data.cub.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"data\.download=true: .*no route to host.*unpack CUB_200_2011\.tgz"):
        read(tmp_path, download=True)


def test_cropped_images_are_stretched_to_the_square_and_validation_is_carved_from_train(folder):
    data = DataModule(
        source=read(folder, crop="box"), image_size=8, batch_size=2, keep_aspect=False, num_workers=0, val_fraction=0.5
    )
    assert data.samples("test")[0].image.shape == (3, 8, 8)
    assert {name: len(positions) for name, positions in data.positions.items()} == {"train": 4, "val": 4, "test": 4}
    assert set(data.keys("val").values()) < set(data.source.train.keys)
