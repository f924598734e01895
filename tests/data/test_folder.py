"""Trees of image files, drawn for the purpose."""

import struct
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from robustfg.core.errors import UserError
from robustfg.data.files import FileSplit
from robustfg.data.folder import Folder

RED = (200, 30, 10)


def put(path, colour=RED, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def plant(root, *names):
    for name in names:
        put(root / name)


def decoded(path):
    return FileSplit(path.parent, [path.name], np.zeros(1, np.int64)).image(0)


def test_a_tree_without_splits_is_split_class_by_class(tmp_path):
    plant(tmp_path, *(f"{name}/{number}.png" for name in ("wren", "finch") for number in range(10)))
    source = Folder(root=str(tmp_path), test_fraction=0.3)
    assert source.classes == ("finch", "wren")
    assert source.val is None
    assert source.genera is None
    assert np.bincount(source.train.labels).tolist() == [7, 7]
    assert np.bincount(source.test.labels).tolist() == [3, 3]
    every = sorted([*source.train.keys, *source.test.keys])
    assert every == sorted(f"{name}/{number}.png" for name in ("wren", "finch") for number in range(10))


def test_a_lone_train_folder_is_split_like_a_bare_tree(tmp_path):
    plant(tmp_path, *(f"train/{name}/{number}.png" for name in "ab" for number in range(4)))
    source = Folder(root=str(tmp_path), test_fraction=0.25)
    assert (len(source.train.labels), len(source.test.labels)) == (6, 2)
    assert all(key.startswith("train/") for key in source.test.keys)


def test_given_splits_are_used_as_given(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/3.png", "val/a/4.png", "val/b/5.png")
    plant(tmp_path, "test/a/6.png", "test/b/7.png")
    source = Folder(root=str(tmp_path))
    assert list(source.train.keys) == ["train/a/1.png", "train/b/2.png", "train/b/3.png"]
    assert source.train.labels.tolist() == [0, 1, 1]
    assert list(source.val.keys) == ["val/a/4.png", "val/b/5.png"]
    assert list(source.test.keys) == ["test/a/6.png", "test/b/7.png"]


def test_val_without_test_is_the_test(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/4.png", "val/b/5.png")
    source = Folder(root=str(tmp_path))
    assert list(source.test.keys) == ["val/a/4.png", "val/b/5.png"]
    assert source.val is None


def test_every_label_names_the_folder_of_its_key(tmp_path):
    plant(tmp_path, *(f"{name}/{number}.png" for name in ("b", "a", "C", "10", "9") for number in range(3)))
    source = Folder(root=str(tmp_path))
    for split in (source.train, source.test):
        assert [key.split("/")[0] for key in split.keys] == [source.classes[label] for label in split.labels]


def test_keys_are_sorted_whatever_order_the_disk_lists_them_in(tmp_path):
    plant(tmp_path, *(f"{name}/{number}.png" for name in "ba" for number in (3, 1, 2)))
    root, stock = str(tmp_path), type(tmp_path).rglob
    with mock.patch.object(type(tmp_path), "rglob", lambda *arguments: sorted(stock(*arguments), reverse=True)):
        keys = Folder(root=root, test_fraction=1).test.keys
    assert list(keys) == [f"{name}/{number}.png" for name in "ab" for number in (1, 2, 3)]


def test_nested_images_belong_to_the_class_on_top(tmp_path):
    plant(tmp_path, "a/1.png", "a/deep/er/2.JPG", "b/3.jpeg")
    source = Folder(root=str(tmp_path), test_fraction=1)
    assert list(source.test.keys) == ["a/1.png", "a/deep/er/2.JPG", "b/3.jpeg"]
    assert source.test.labels.tolist() == [0, 0, 1]


def test_a_fraction_of_one_makes_everything_the_test(tmp_path):
    plant(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    source = Folder(root=str(tmp_path), test_fraction=1)
    assert len(source.train.labels) == 0
    assert source.test.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("splits", [[""], ["train/", "test/"]])
def test_hidden_folders_and_files_and_other_files_are_ignored(tmp_path, splits):
    for split in splits:
        plant(tmp_path, f"{split}a/1.png", f"{split}b/2.png", f"{split}.thumbnails/x/3.png")
        plant(tmp_path, f"{split}a/.ipynb_checkpoints/1.png", f"{split}a/._1.png")
        (tmp_path / f"{split}a/notes.txt").write_text("not an image")
        (tmp_path / f"{split}readme.md").write_text("not a class")
    source = Folder(root=str(tmp_path), test_fraction=1)
    assert source.classes == ("a", "b")
    assert list(source.test.keys) == [f"{splits[-1]}a/1.png", f"{splits[-1]}b/2.png"]


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plant(tmp_path, "birds/a/1.png", "birds/b/2.png")
    assert Folder(root="~/birds").classes == ("a", "b")


def test_an_unset_root_is_refused():
    with pytest.raises(UserError, match=r"data\.root is not set"):
        Folder(root=None)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        Folder(root=str(tmp_path / "nowhere"))
    assert f"data.root={tmp_path / 'nowhere'}" in str(error.value)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_fraction_that_leaves_no_test_is_refused(tmp_path, fraction):
    with pytest.raises(UserError, match=r"data\.test_fraction"):
        Folder(root=str(tmp_path), test_fraction=fraction)


def test_fewer_than_two_classes_are_refused(tmp_path):
    plant(tmp_path, "only/1.png")
    with pytest.raises(UserError, match="1 class folders"):
        Folder(root=str(tmp_path))


def test_a_class_that_only_the_test_knows_is_named(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png", "test/zebra/5.png")
    with pytest.raises(UserError, match="zebra"):
        Folder(root=str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_named(tmp_path, split):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    next((tmp_path / split / "b").iterdir()).unlink()
    with pytest.raises(UserError) as error:
        Folder(root=str(tmp_path))
    assert str(tmp_path / split / "b") in str(error.value)


def test_a_class_that_the_test_folder_lacks_is_named(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    with pytest.raises(UserError) as error:
        Folder(root=str(tmp_path))
    assert str(tmp_path / "test" / "b") in str(error.value)


def test_val_and_test_without_train_are_not_taken_for_classes(tmp_path):
    plant(tmp_path, "val/a/1.png", "val/b/2.png", "test/a/3.png", "test/b/4.png")
    with pytest.raises(UserError, match="no train folder"):
        Folder(root=str(tmp_path))


def test_an_image_comes_as_rgb_bytes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = decoded(tmp_path / "x.png")
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)


def test_torch_takes_an_image_without_a_warning(tmp_path):
    put(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decoded(tmp_path / "x.png")
        assert image.flags.writeable
        torch.from_numpy(image)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".pgm"])
def test_grey_is_repeated(tmp_path, suffix):
    Image.new("L", (5, 4), 77).save(tmp_path / f"x{suffix}")
    assert np.array_equal(decoded(tmp_path / f"x{suffix}"), np.full((4, 5, 3), 77))


def test_a_cmyk_jpeg_becomes_the_colours_it_stands_for(tmp_path):
    cyan, magenta, yellow, black = 51, 102, 204, 51
    Image.new("CMYK", (16, 16), (cyan, magenta, yellow, black)).save(tmp_path / "x.jpg", quality=100)
    expected = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    assert np.abs(decoded(tmp_path / "x.jpg") - np.asarray(expected)).max() <= 2


def test_a_palette_is_looked_up(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "x.png")
    assert decoded(tmp_path / "x.png").tolist() == [[[10, 20, 30], [255, 0, 0], [0, 255, 0]]]


def test_transparency_is_dropped(tmp_path):
    Image.new("RGBA", (2, 2), (*RED, 128)).save(tmp_path / "x.png")
    assert np.array_equal(decoded(tmp_path / "x.png"), np.full((2, 2, 3), RED))


TURNED = {  # EXIF 2.32, tag 0x0112: how the stored rows and columns lie in the upright image
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.transpose(1, 0, 2), 2),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "x.png"), TURNED[orientation](stored))


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="more than 8 bits") as error:
        decoded(tmp_path / "x.png")
    assert str(tmp_path / "x.png") in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\xff\xd8\xff\xe0 broken"], ids=["empty", "text", "head"]
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_corrupt_image_is_named(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        decoded(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        decoded(path)
    assert str(path) in str(error.value)


def test_an_image_whose_decoder_fails_oddly_is_named(tmp_path):
    put(tmp_path / "x.jpg")
    failure = struct.error("required argument is not an integer")  # seen from Pillow on damaged EXIF data
    with mock.patch("PIL.ImageOps.exif_transpose", side_effect=failure), pytest.raises(UserError, match=r"x\.jpg"):
        decoded(tmp_path / "x.jpg")


def test_a_vanished_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg"):
        decoded(tmp_path / "gone.jpg")
