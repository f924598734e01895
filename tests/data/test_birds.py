"""The built-in birds: the same everywhere, fine-grained by construction, and honest about where their parts are."""

import hashlib
import math
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robustfg.data.birds import Birds, species_of
from robustfg.data.birds_drawing import Dice, compose, masks, paint

# Mean grey of the 8 x 8 blocks of the first three test images under the default options.
GOLDEN = (
    [
        [66.0, 77.6, 96.0, 77.2, 78.1, 115.0],
        [71.1, 89.9, 71.1, 75.3, 94.2, 132.8],
        [77.9, 100.5, 101.6, 71.8, 76.8, 91.4],
        [66.5, 85.1, 121.1, 78.9, 76.3, 86.7],
        [42.8, 53.2, 73.0, 74.9, 87.1, 84.8],
        [38.7, 45.5, 53.9, 74.7, 79.4, 74.9],
    ],
    [
        [194.3, 110.7, 118.3, 131.8, 156.2, 187.8],
        [152.8, 134.8, 126.8, 118.7, 122.5, 151.3],
        [125.6, 124.8, 142.8, 104.2, 108.1, 125.4],
        [103.3, 93.3, 131.6, 93.4, 92.3, 90.4],
        [86.4, 82.9, 93.3, 99.7, 82.9, 63.1],
        [73.6, 76.7, 80.1, 78.2, 70.3, 63.8],
    ],
    [
        [129.7, 146.9, 176.2, 209.3, 224.9, 214.5],
        [164.4, 168.8, 184.4, 215.4, 230.9, 230.4],
        [160.2, 190.8, 140.7, 118.9, 164.6, 227.5],
        [172.2, 130.4, 105.0, 159.9, 225.4, 241.1],
        [195.0, 192.4, 216.3, 183.7, 177.1, 186.3],
        [154.6, 172.7, 198.2, 221.0, 234.0, 243.0],
    ],
)


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the pixels that touch it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    grown: NDArray[np.bool_] = np.any(
        [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0
    )
    return grown


def test_birds_offer_what_a_source_must() -> None:
    source = Birds(train=20, test=10)
    assert source.genera is not None
    assert len(source.classes) == len(set(source.classes)) == len(source.genera) == 16
    assert all(name.startswith(f"{genus}_") for name, genus in zip(source.classes, source.genera, strict=True))
    assert source.val is None
    assert len(source.train.labels) == len(source.train.keys) == 20
    assert source.test.keys[7] == "test/000007"
    assert source.test.image(0).shape == (48, 48, 3)
    assert source.test.image(0).dtype == np.uint8


def test_names_are_unique_for_forty_genera_of_ten_species() -> None:
    birds = Birds(num_genera=40, species_per_genus=10, train=1, test=1)
    assert len(set(birds.classes)) == 400
    assert birds.genera is not None
    assert len(set(birds.genera)) == 40


def test_a_sample_depends_neither_on_the_number_of_samples_nor_on_the_order_of_access() -> None:
    few, many = Birds(train=20, test=20), Birds(train=90, test=90)
    assert np.array_equal(few.train.labels, many.train.labels[:20])
    backwards = [many.train.image(position) for position in reversed(range(20))][::-1]
    assert all(np.array_equal(few.train.image(position), backwards[position]) for position in range(20))


def test_the_first_test_images_have_not_drifted() -> None:
    birds = Birds(test=3)
    for position, expected in enumerate(GOLDEN):
        blocks = birds.test.image(position).reshape(6, 8, 6, 8, 3).mean(axis=(1, 3, 4))
        assert np.abs(blocks - np.array(expected)).max() <= 1


def test_dice_are_numpys_philox_under_a_hashed_key() -> None:
    key = int.from_bytes(hashlib.blake2b(b"0/test/scene/5", digest_size=16).digest(), "little")
    expected = np.random.Generator(np.random.Philox(key=key)).random(100)
    assert np.array_equal(Dice(0, "test", "scene", 5).uniforms(100), expected)


def test_splits_and_seeds_draw_different_pictures() -> None:
    birds, others = Birds(train=20, test=20), Birds(train=20, test=20, seed=1)
    pictures = {
        split.image(position).tobytes() for split in (birds.train, birds.test, others.train) for position in range(20)
    }
    assert len(pictures) == 60
    assert not np.array_equal(birds.train.labels, birds.test.labels)


@pytest.mark.parametrize("count", [16, 40, 480])
def test_labels_are_balanced(count: int) -> None:
    per_class = np.bincount(Birds(test=count).test.labels, minlength=16)
    assert per_class.min() == count // 16
    assert per_class.max() == math.ceil(count / 16)


@pytest.mark.parametrize("genus", range(12))
def test_species_of_a_genus_differ_only_in_their_deciding_parts(genus: int) -> None:
    scene, size = compose(Dice("scene", genus), 0.5), 192
    first, *others = species_of(genus, 6)
    for other in others:
        deciding = np.zeros((size, size), dtype=bool)
        for species in (first, other):
            seen = masks(species.shapes, scene, size)
            deciding |= np.any([seen[part] for part in species.deciding_parts if part in seen], axis=0)
        differs = (paint(first.shapes, scene, size) != paint(other.shapes, scene, size)).any(axis=2)
        assert differs.any()
        assert (differs & ~_grown(_grown(deciding))).mean() < 2e-4  # slivers covered by less than half


def test_deciding_parts_are_those_in_which_siblings_differ() -> None:
    assert [species.deciding_parts for species in species_of(0, 1)] == [()]
    assert [species.deciding_parts for species in species_of(0, 2)] == [("wing_bar",)] * 2
    assert [species.deciding_parts for species in species_of(0, 4)] == [("crown", "wing_bar")] * 4


@pytest.mark.parametrize("position", range(20))
def test_masks_are_disjoint_and_cover_what_is_seen_of_the_bird(position: int) -> None:
    scene, size = compose(Dice("masks", position), 0.8), 192
    shapes = species_of(position, 1)[0].shapes
    seen = masks(shapes, scene, size)
    assert np.sum(list(seen.values()), axis=0).max() == 1
    bird = np.any(list(seen.values()), axis=0)
    changed = (paint(shapes, scene, size).astype(int) != paint((), scene, size)).any(axis=2)
    assert changed[bird].mean() > 0.98
    assert (changed & ~_grown(_grown(bird))).mean() < 1e-3  # slivers covered by less than half


def test_a_split_tells_where_the_parts_of_its_pictures_are() -> None:
    birds = Birds(test=8, difficulty=0)
    for position, label in enumerate(birds.test.labels):
        seen = birds.test.parts(position)
        assert {"body", "head", "eye", *birds.deciding_parts[label]} <= set(seen)
        assert all(mask.shape == (48, 48) and mask.dtype == bool and mask.any() for mask in seen.values())


def test_difficulty_zero_has_no_occlusion_and_difficulty_one_has() -> None:
    assert all(not compose(Dice("easy", position), 0.0).before for position in range(50))
    assert any(compose(Dice("hard", position), 1.0).before for position in range(50))


@pytest.mark.parametrize("size", [24, 37, 64, 192])
def test_any_image_size_shows_the_same_picture(size: int) -> None:
    small, large = Birds(image_size=size, test=1).test.image(0), Birds(image_size=384, test=1).test.image(0)
    assert small.shape == (size, size, 3)
    assert np.abs(small.mean(axis=(0, 1)) - large.mean(axis=(0, 1))).max() < 3


@settings(max_examples=60, deadline=None)
@given(
    first=st.tuples(st.integers(0, 44), st.integers(0, 15)), second=st.tuples(st.integers(0, 44), st.integers(0, 15))
)
def test_any_two_species_look_different(first: tuple[int, int], second: tuple[int, int]) -> None:
    assume(first != second)
    scene = compose(Dice("meadow"), 0.0)
    one, other = (paint(species_of(genus, 16)[number].shapes, scene, 48) for genus, number in (first, second))
    difference = np.abs(one.astype(int) - other.astype(int)).max(axis=2)
    assert (difference > 32).sum() >= 10  # twice 8/255 and more, in at least ten pixels


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("num_genera", 0, "in [1, 45]"),
        ("num_genera", 46, "in [1, 45]"),
        ("species_per_genus", 17, "in [1, 16]"),
        ("image_size", 23, ">= 24"),
        ("difficulty", 1.5, "in [0, 1]"),
        ("difficulty", math.nan, "in [0, 1]"),
        ("train", 0, ">= 1"),
        ("test", -1, ">= 1"),
    ],
)
def test_a_bad_option_is_named(option: str, value: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"data.source.{option} must be {allowed}, got {value}")):
        Birds(**{option: value})  # type: ignore[arg-type]


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.source\.species_per_genus must be in \[2, 16\], got 1"):
        Birds(num_genera=1, species_per_genus=1)
