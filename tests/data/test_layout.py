"""Trees of images as strangers have them: what is taken for a split, a class, or neither, and what is said of it."""

import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from robustfg.core.errors import UserError
from robustfg.data.datamodule import DataModule
from robustfg.data.files import read_image
from robustfg.data.folder import Folder
from robustfg.data.listing import SUFFIXES, listed
from robustfg.prediction import images_in


def plant(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path, format="PNG")
    return root


def splits(*folders, classes=("a", "b")):
    return [f"{folder}/{name}/{number}.png" for folder in folders for name in classes for number in range(2)]


@pytest.mark.parametrize(
    ("folders", "train", "val", "test"),
    [
        (("Train", "Test"), "Train", None, "Test"),
        (("training", "validation"), "training", None, "validation"),
        (("train", "valid", "test"), "train", "valid", "test"),
        (("TRAIN", "VAL", "TESTING"), "TRAIN", "VAL", "TESTING"),
        (("train", "dev", "test"), "train", "dev", "test"),
        (("train", "eval"), "train", None, "eval"),
        (("train", "eval", "test"), "train", "eval", "test"),
        (("train", "val", "eval"), "train", "val", "eval"),
        (("training_set", "test_set"), "training_set", None, "test_set"),
        (("train_images", "test_images"), "train_images", None, "test_images"),
        (("images_train", "images_val"), "images_train", None, "images_val"),
        (("TrainSet", "Val data", "test-split"), "TrainSet", "Val data", "test-split"),
        (("\uff34rain", "Evaluation"), "\uff34rain", None, "Evaluation"),
    ],
)
def test_the_usual_names_of_splits_are_known(tmp_path, folders, train, val, test):
    source = Folder(root=str(plant(tmp_path, *splits(*folders))))
    assert source.classes == ("a", "b")
    assert list(source.train.keys) == splits(train)
    assert list(source.test.keys) == splits(test)
    assert (source.val and list(source.val.keys)) == (val and splits(val))
    assert all(str(tmp_path / folder) in source.found[0] for folder in folders)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (splits("Train", "train", "test"), r"Train and train, which both name the train split"),
        (splits("train", "val", "validation"), r"val and validation, which both name the val split"),
        (splits("val", "test"), r"no train folder; .* data\.root=.*/test data\.source\.test_fraction=1|val and test"),
        (splits("train", "test", "holdout"), r"holdout holds classes of train too, but holdout is no usual name"),
        (
            splits("cub/train", "cub/test", "cars/train", "cars/test"),
            r"data sets .*\(cars, cub\); .*data\.root=.*/cars",
        ),
        (splits("cub/train", "cub/eval", "cars/train", "cars/eval"), r"data sets .*\(cars, cub\)"),
        (splits("cub/train", "cars/train"), r"data sets .*\(cars, cub\)"),
        (splits("train", "eval", "Evaluation"), r"Evaluation and eval; name them val and test"),
        (splits("train", "train_images", "test"), r"train and train_images, which both name the train split"),
        (splits("fold1", "fold2"), r"fold1 and fold2 hold the same folders \(a, b, …\), so they are no classes"),
        (splits("set_a", "set_b", "set_c"), r"set_a and set_b hold the same folders"),
        (splits("train2014", "val2014"), r"train2014 and val2014 hold the same folders"),
        ([*splits("fold1", "fold2"), "extra/photos/1.png"], r"fold1 and fold2 hold the same folders"),
        (splits("holdout", "rest"), r"holdout and rest hold the same folders"),
        (["fold1/1.png", "fold2/1.png"], r"fold1 has the name of a part of a data set and would be a class"),
        (["train_images/1.png", "test_images/1.png"], r"test_images and train_images hold no class folders"),
        (["cats/1.png", "dogs/1.png", "test/1.png"], r"test has the name of a part .* would be a class; rename it or"),
        (
            ["images/train/1.png", "images/val/1.png", "labels/train/1.txt"],
            r"holds images, labels, which are no classes",
        ),
        (["images/1.png", "Masks/1.png"], r"holds Masks, images, which are no classes"),
        (
            ["train/images/1.png", "train/labels/1.txt", "valid/images/1.png"],
            r"train holds images, labels, which are no",
        ),
        (splits("data/train", "data/test"), r"data sets .*\(data\); .*data\.root=.*/data"),
        (splits("photos/train", "photos/test"), r"data sets .*\(photos\); .*data\.root=.*/photos"),
        ([*splits("train", "test"), "test/zebra/1.png"], r"test has the class 'zebra'"),
        ([*splits("train", "test"), "train/c/1.png"], r"test/c is missing"),
        (["train/Wren/1.png", "train/b/1.png", "test/wren/1.png", "test/b/1.png"], r"'wren'.*it has 'Wren'"),
        (["only/1.png"], r"1 class folders, need at least two"),
        (["1.png", "2.png"], r"0 class folders and 2 images beside them"),
        (["train/1.png", "test/2.png"], r"test and train hold no class folders"),
    ],
)
def test_what_can_be_understood_in_two_ways_is_refused_with_what_to_do(tmp_path, names, told):
    with pytest.raises(UserError, match=told) as error:
        Folder(root=str(plant(tmp_path, *names)))
    assert "\n" not in str(error.value)


def test_folders_named_like_splits_that_hold_images_beside_others_are_classes(tmp_path):
    source = Folder(root=str(plant(tmp_path, *(f"{name}/{n}.png" for name in ("bus", "car", "train") for n in "12"))))
    assert source.classes == ("bus", "car", "train")
    plant(tmp_path / "other", "valid/1.png", "invalid/1.png", "test tube/1.png", "train station/a/1.png")
    assert len(Folder(root=str(tmp_path / "other")).classes) == 4
    views = ("bus/front/1.png", "bus/side/1.png", "car/front/1.png", "car/side/1.png", "tram/1.png")
    assert Folder(root=str(plant(tmp_path / "views", *views))).classes == ("bus", "car", "tram")


def test_what_systems_leave_in_folders_is_no_image_in_training_and_prediction(tmp_path):
    left = ("__MACOSX", "@eaDir", "$Recycle.Bin", "System Volume Information", ".ipynb_checkpoints", "#recycle")
    plant(tmp_path, *splits("train", "test"), *(f"{name}/a/1.png" for name in left), "train/a/._1.png")
    plant(tmp_path, *(f"train/a/{name}/1.png" for name in left))
    source = Folder(root=str(tmp_path))
    assert [*source.train.keys, *source.test.keys] == splits("train", "test")
    assert f"{2 * len(left) + 1} hidden" in source.found[1]
    every = [os.path.relpath(path, tmp_path) for path in images_in([tmp_path])]
    assert sorted(every) == sorted(splits("train", "test"))


def test_what_is_left_out_is_said_and_why(tmp_path):
    plant(tmp_path, *splits("train", "test"), "beside.png", "train/x.png", "extra/pictures/1.png", "train/a/.h.png")
    plant(tmp_path, "__MACOSX/train/a/1.png", "train/a/deep/er/1.png")
    for name in ("train/a/1.heic", "train/a/notes.txt", "train/b/Thumbs.db", "train/b/.DS_Store"):
        (tmp_path / name).write_text("x")
    (tmp_path / "train" / "a" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    source = Folder(root=str(tmp_path))
    (line,) = source.found[1:]
    for told in (
        "2 files that are no images (.heic 1, .txt 1)", "4 hidden", "1 links that lead nowhere",
        "1 neither files nor folders", "1 images beside the folders in the root",
        "1 images beside the folders in train", "the folder extra with 1 images",
    ):  # fmt: skip
        assert told in line
    assert len(source.train.labels) == 5
    told = DataModule(source=source, image_size=8, batch_size=2).found()
    assert told[2:] == [
        "2 classes: a, b",
        "images: train 3 (1 to 2 a class), val 2 (1 a class), test 4 (2 a class); val is a part of train",
    ]  # fmt: skip


def test_classes_that_differ_in_case_only_are_said(tmp_path):
    source = Folder(root=str(plant(tmp_path, *splits("Wren", "wren", "finch", classes=("",)))))
    assert source.classes == ("Wren", "finch", "wren")
    assert "in case or accents' form only: Wren, wren" in source.found[1]


def test_images_behind_links_are_taken_and_circles_end(tmp_path):
    plant(tmp_path / "far", "x/1.png", "x/2.png")
    plant(tmp_path / "tree", "a/1.png", "b/1.png")
    (tmp_path / "tree" / "a" / "more").symlink_to(tmp_path / "far" / "x")
    (tmp_path / "tree" / "c").symlink_to(tmp_path / "far" / "x")
    (tmp_path / "tree" / "b" / "loop").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "b" / "self").symlink_to("self")
    source = Folder(root=str(tmp_path / "tree"), test_fraction=1)
    assert list(source.test.keys) == ["a/1.png", "a/more/1.png", "a/more/2.png", "b/1.png", "c/1.png", "c/2.png"]
    assert "1 links that lead in a circle" in source.found[1]
    assert "1 links that lead nowhere" in source.found[1]


SAVED = {".gif": "GIF", ".tif": "TIFF", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM",
         ".tga": "TGA", ".ico": "ICO", ".jp2": "JPEG2000"}  # fmt: skip


def test_whatever_pillow_opens_is_an_image(tmp_path):
    for suffix, kind in SAVED.items():
        if suffix in SUFFIXES:
            for name in "ab":
                (tmp_path / name).mkdir(exist_ok=True)
                Image.new("RGB", (16, 16), (200, 200, 200)).save(tmp_path / name / f"x{suffix.upper()}", kind)
    source = Folder(root=str(tmp_path), test_fraction=1)
    assert len(source.test.keys) >= 2 * 8
    for position in range(len(source.test.keys)):
        assert np.abs(source.test.image(position).astype(int) - 200).max() <= 4, source.test.keys[position]
    assert not {".txt", ".mpg", ".h5", ".eps", ".pdf"} & SUFFIXES


def test_hostile_images_give_their_pixels_or_one_line_that_names_the_file(tmp_path, recwarn):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    assert read_image(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]
    Image.new("RGB", (2, 2), (9, 9, 9)).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (2, 2), (255, 0, 0))]
    )
    assert read_image(tmp_path / "moving.gif").tolist() == [[[9, 9, 9]] * 2] * 2
    Image.new("LA", (1, 1), (77, 0)).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").tolist() == [[[77, 77, 77]]]
    plant(tmp_path, "thin/a/1.png", "thin/b/1.png")
    Image.new("RGB", (1, 1), (5, 6, 7)).save(tmp_path / "thin" / "a" / "1.png")
    data = DataModule(source=Folder(root=str(tmp_path / "thin"), test_fraction=1), image_size=8, batch_size=2)
    assert (data.samples("test")[0].image * 255).round().amin((1, 2)).tolist() == [5, 6, 7]
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    for path in (bomb, tmp_path / "pipe.png", tmp_path / "empty.png", tmp_path / "thin"):
        with pytest.raises(UserError, match=f"cannot read the image {path} ") as error:
            read_image(path)
        assert "\n" not in str(error.value)
    assert not recwarn.list


def test_large_images_are_read_without_a_warning_and_too_large_or_long_ones_are_named(tmp_path, monkeypatch, recwarn):
    warnings.simplefilter("always")
    plant(tmp_path, "a/1.png", "b/1.png")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert np.array_equal(read_image(tmp_path / "a" / "1.png"), pixels)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (60_000, 1)).save(tmp_path / "b" / "1.png")
    samples = DataModule(source=Folder(root=str(tmp_path), test_fraction=1), image_size=224, batch_size=2).samples(
        "test"
    )
    with pytest.raises(UserError, match=r"cannot read the image .*a/1\.png .*256 pixels.* exceeds"):
        samples[0]
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"b/1\.png of 60000 x 1 pixels .*too long .*keep_aspect=false"):
        samples[1]
    from robustfg.prediction.pictures import Pictures

    assert "too long" in Pictures(samples.transform)[str(tmp_path / "b" / "1.png")].error


def test_a_png_with_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "y.png").write_bytes(damaged)
        try:
            assert np.array_equal(read_image(tmp_path / "y.png"), pixels), place
        except UserError as error:
            assert str(tmp_path / "y.png") in str(error)  # noqa: PT017


def test_a_kept_listing_is_used_until_a_folder_or_an_image_changes(tmp_path, monkeypatch):
    from robustfg.data import listing

    plant(tmp_path / "tree", "a/1.png", "a/deep/2.png", os.fsdecode(b"b/\xff.png"))
    monkeypatch.setattr(listing, "KEPT_FROM", 2)
    token = listing.KEPT_IN.set(tmp_path / "kept")
    try:
        first = listed(tmp_path / "tree")
        (kept,) = (tmp_path / "kept").iterdir()
        settled = [tmp_path / "tree" / folder for folder in first.folders]
        for folder in settled:
            os.utime(folder, (1, 1))
        kept.unlink()
        first = listed(tmp_path / "tree")
        listings = []
        stock = listing._list
        monkeypatch.setattr(listing, "_list", lambda root: listings.append(root) or stock(root))
        again = listed(tmp_path / "tree")
        assert listings == []
        assert list(again.paths) == list(first.paths) == ["a/1.png", "a/deep/2.png", os.fsdecode(b"b/\xff.png")]
        assert again.sizes.tolist() == first.sizes.tolist()
        assert (again.folders, dict(again.left_out)) == (first.folders, dict(first.left_out))
        os.utime(kept, (1, 1))  # the last look at every file was long ago
        listed(tmp_path / "tree")
        assert listings == []
        over, of = tmp_path / "tree" / "a" / "deep" / "2.png", (tmp_path / "tree" / "a" / "deep").stat()
        with over.open("r+b") as file:  # the same size, in its place
            file.write(b"other"[: over.stat().st_size])
        os.utime(kept, (1, 1))
        with pytest.warns(UserWarning, match=r"tree: 1 image was written over .*'a/deep/2\.png'.* other pixels"):
            listed(tmp_path / "tree")
        other = over.with_suffix(".new")
        shutil.copy2(over, other)
        other.rename(over)  # same size and time, another file
        os.utime(over.parent, ns=(of.st_atime_ns, of.st_mtime_ns))
        os.utime(kept, (1, 1))
        listed(tmp_path / "tree")
        assert len(listings) == 2
        plant(tmp_path / "tree", "a/deep/3.png")
        assert len(listed(tmp_path / "tree").paths) == 4
        assert len(listings) == 3
        kept.write_bytes(kept.read_bytes()[:100])
        assert len(listed(tmp_path / "tree").paths) == 4
        assert len(listings) == 4
    finally:
        listing.KEPT_IN.reset(token)
