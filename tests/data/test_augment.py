"""Augmentations against Pillow's warps, and ProtoPNet's set as a whole."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from archives import picture
from PIL import Image

from robustfg.core.errors import UserError
from robustfg.data import augment
from robustfg.data.arrays import ArraySplit
from robustfg.data.augment import InOrder, Thirtyfold, rotated, sheared, skewed
from robustfg.data.datamodule import DataModule

SIZES = [(60, 40), (40, 60), (50, 50)]
BILINEAR = Image.Resampling.BILINEAR


def smooth(size):
    return picture(1, size)


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


def close(image, expected, tolerance=8.0):
    """Within rounding and one more interpolation, away from the rim."""
    difference = np.abs(image.permute(1, 2, 0).numpy().astype(float) - np.asarray(expected, float))
    return image.dtype == torch.uint8 and difference[2:-2, 2:-2].max() <= tolerance


def pillow(pixels, before, after):
    """Pillow's projective transform, solved from the four pairs of points."""
    rows, values = [], []
    for (x, y), (u, v) in zip(after, before, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(rows, float), np.array(values, float))
    image = Image.fromarray(pixels)
    return image.transform(image.size, Image.Transform.PERSPECTIVE, coefficients, BILINEAR)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [-15, -4, 9, 15])
def test_a_rotation_shows_the_largest_covered_rectangle_of_the_same_shape(size, degrees):
    width, height = size
    pixels = smooth(size)
    turned = Image.fromarray(pixels).rotate(-degrees, resample=BILINEAR)  # Pillow turns the other way
    covered = Image.fromarray(np.full((height, width), 255, np.uint8)).resize((8 * width, 8 * height))
    covered = np.array(covered.rotate(-degrees, resample=BILINEAR)) > 127

    def whole(scale):
        box = [round(8 * side * (1 - scale) / 2) for side in (width, height)]
        return covered[box[1] : 8 * height - box[1], box[0] : 8 * width - box[0]].all()

    scale = max(scale for scale in np.linspace(0.3, 1, 701) if whole(scale))
    box = [width * (1 - scale) / 2, height * (1 - scale) / 2, width * (1 + scale) / 2, height * (1 + scale) / 2]
    expected = turned.resize(size, BILINEAR, box=box)
    assert close(rotated(tensor(pixels), degrees), expected)
    assert not close(rotated(tensor(pixels), -degrees), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [-10, 3, 10])
@pytest.mark.parametrize("along_rows", [True, False])
def test_a_shear_enlarges_what_stays_covered_from_edge_to_edge(size, degrees, along_rows):
    width, height = size
    pixels, slope = smooth(size), math.tan(math.radians(degrees))
    if along_rows:  # row y moves by slope * y to the right
        shift = slope * height
        affine, box = (1, -slope, min(shift, 0), 0, 1, 0), (abs(shift), 0, width, height)
        wide = (math.ceil(width + abs(shift)), height)
    else:
        shift = slope * width
        affine, box = (1, 0, 0, -slope, 1, min(shift, 0)), (0, abs(shift), width, height)
        wide = (width, math.ceil(height + abs(shift)))
    slanted = Image.fromarray(pixels).transform(wide, Image.Transform.AFFINE, affine, BILINEAR)
    expected = slanted.resize(size, BILINEAR, box=box)
    assert close(sheared(tensor(pixels), degrees, along_rows=along_rows), expected)
    assert not close(sheared(tensor(pixels), -degrees, along_rows=along_rows), expected)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("LEFT", [(0, -9), (60, 0), (60, 40), (0, 49)]),
        ("RIGHT", [(0, 0), (60, -9), (60, 49), (0, 40)]),
        ("UP", [(-9, 0), (69, 0), (60, 40), (0, 40)]),
        ("DOWN", [(0, 0), (60, 0), (69, 40), (-9, 40)]),
    ],
)
def test_a_tilt_moves_two_corners_apart(name, moved):
    pixels, corners = smooth((60, 40)), [(0, 0), (60, 0), (60, 40), (0, 40)]
    assert close(skewed(tensor(pixels), getattr(augment, name), 9.0), pillow(pixels, corners, moved), 3)


def test_the_eight_corner_skews_move_one_corner_outward_along_one_axis():
    pixels, corners = smooth((60, 40)), [(0, 0), (60, 0), (60, 40), (0, 40)]
    seen = set()
    for shifts in augment.CORNERS:
        moved = [(x + 9 * right, y + 9 * down) for (x, y), (right, down) in zip(corners, shifts, strict=True)]
        (still,) = [n for n, pair in enumerate(zip(moved, corners, strict=True)) if pair[0] != pair[1]]
        x, y = moved[still]
        assert (x < 0 or x > 60) != (y < 0 or y > 40)
        seen.add((still, x, y))
        assert close(skewed(tensor(pixels), shifts, 9.0), pillow(pixels, corners, moved), 3)
    assert len(seen) == 8


def test_nothing_black_comes_in_and_the_size_stays():
    image, change = torch.full((3, 37, 53), 200, dtype=torch.uint8), Thirtyfold(flip=0)
    for seed in range(60):
        torch.manual_seed(seed)
        changed = change(image)
        assert changed.shape == image.shape
        assert changed.min() >= 199


def test_all_kinds_come_up_equally_often_within_their_ranges(monkeypatch):
    drawn = []
    monkeypatch.setattr(augment, "rotated", lambda image, degrees: drawn.append(("rotated", degrees)) or image)
    monkeypatch.setattr(augment, "skewed", lambda image, way, amount: drawn.append(("skewed", amount, way)) or image)
    monkeypatch.setattr(
        augment, "sheared", lambda image, degrees, along_rows: drawn.append(("sheared", degrees, along_rows)) or image
    )
    image = torch.arange(2, dtype=torch.uint8).expand(3, 40, 2)
    torch.manual_seed(0)
    flips = sum(int(Thirtyfold()(image)[0, 0, 0]) for _ in range(6000))
    assert abs(flips - 3000) < 200
    for kind, largest in (("rotated", 15), ("skewed", 0.2 * 40), ("sheared", 10)):
        values = np.array([entry[1] for entry in drawn if entry[0] == kind])
        assert abs(len(values) - 2000) < 200
        assert 0.98 * largest < np.abs(values).max() <= largest
        if kind != "skewed":
            assert -largest <= values.min() < -0.98 * largest
    assert abs(sum(entry[-1] is True for entry in drawn) - 1000) < 120
    ways = [entry[-1] for entry in drawn if entry[0] == "skewed"]
    tilts = (augment.LEFT, augment.RIGHT, augment.UP, augment.DOWN)
    assert abs(sum(way in tilts for way in ways) - 0.75 * len(ways)) < 100
    assert set(ways) == {*tilts, *augment.CORNERS}


def test_an_image_is_augmented_alike_by_seed_epoch_and_id_and_anew_in_every_epoch():
    images = np.stack([smooth((20, 16))] * 3)
    split = ArraySplit(images, np.arange(3), "train")
    source = SimpleNamespace(classes=("a", "b", "c"), genera=None, train=split, test=split, val=split)

    def epoch(number, **options):
        data = DataModule(
            source=source,
            image_size=16,
            batch_size=1,
            num_workers=0,
            keep_aspect=False,
            augment=Thirtyfold(),
            **options,
        )
        return data.samples("train")[3 * number].image

    torch.manual_seed(5)
    first = epoch(0)
    torch.manual_seed(6)
    assert torch.equal(first, epoch(0))
    assert not torch.equal(first, epoch(1))
    assert not torch.equal(first, epoch(0, seed=1))


def test_steps_follow_one_another_and_none_leaves_the_image():
    image = torch.ones(3, 2, 2)
    assert InOrder(steps=[])(image) is image
    assert InOrder(steps=[lambda x: x + 1, lambda x: 10 * x])(image).unique().tolist() == [20]


@pytest.mark.parametrize(("option", "value"), [("rotation", 50), ("skew", -0.1), ("shear", math.nan), ("flip", 2)])
def test_a_bad_option_is_refused_by_name(option, value):
    with pytest.raises(UserError, match=rf"data\.augment\.{option} must be in \[0, .* got"):
        Thirtyfold(**{option: value})
