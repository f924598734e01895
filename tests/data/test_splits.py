"""Carving, subsets and fingerprints, against their definitions."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustfg.data.splits import balanced_subset, fingerprint, manifest, stratified

LABELS = st.lists(st.integers(0, 6), max_size=80).map(lambda labels: np.asarray(labels, np.int64))
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 5)


@given(LABELS, st.floats(0, 1), SEEDS)
def test_the_two_sides_are_sorted_disjoint_and_complete(labels, fraction, seed):
    kept, aside = stratified(labels, fraction, seed)
    assert sorted([*kept, *aside]) == list(range(len(labels)))
    assert list(kept) == sorted(kept)
    assert list(aside) == sorted(aside)


@given(LABELS, FRACTIONS, SEEDS)
def test_every_class_of_two_or_more_is_on_both_sides(labels, fraction, seed):
    kept, aside = stratified(labels, fraction, seed)
    for label, size in Counter(labels.tolist()).items():
        assert (labels[kept] == label).sum() >= 1
        assert ((labels[aside] == label).sum() >= 1) == (size >= 2)


@given(LABELS, FRACTIONS, SEEDS)
def test_every_class_gives_its_share(labels, fraction, seed):
    _, aside = stratified(labels, fraction, seed)
    for label, size in Counter(labels.tolist()).items():
        given_up = (labels[aside] == label).sum()
        assert abs(given_up - fraction * size) <= 0.5 or given_up in (1, size - 1)


def test_a_tenth_of_uneven_classes_is_a_tenth_of_each():
    labels = np.repeat([0, 1, 2], [100, 50, 20])
    _, aside = stratified(labels, 0.1, 0)
    assert np.bincount(labels[aside]).tolist() == [10, 5, 2]


@pytest.mark.parametrize(("fraction", "kept", "aside"), [(0, 7, 0), (1, 0, 7), (0.0, 7, 0), (1.0, 0, 7)])
def test_nothing_and_everything_can_be_set_aside(fraction, kept, aside):
    sides = stratified(np.asarray([0, 0, 0, 1, 1, 1, 2]), fraction, 0)
    assert [len(side) for side in sides] == [kept, aside]


def test_the_seed_chooses_which_and_nothing_else_does():
    labels = np.random.default_rng(0).integers(0, 4, 400)
    np.random.seed(1)
    first = stratified(labels, 0.3, 7)[1]
    np.random.seed(2)
    assert np.array_equal(stratified(labels, 0.3, 7)[1], first)
    assert not np.array_equal(stratified(labels, 0.3, 8)[1], first)


def test_members_are_drawn_at_random_not_from_the_front():
    labels = np.zeros(1000, np.int64)
    _, aside = stratified(labels, 0.5, 0)
    assert abs(aside.mean() - 499.5) < 60  # six standard errors of the mean


@given(LABELS, st.integers(0, 90), SEEDS)
def test_a_subset_has_the_size_asked_for(labels, count, seed):
    subset = balanced_subset(labels, count, seed)
    assert len(set(subset.tolist())) == len(subset) == min(count, len(labels))
    assert list(subset) == sorted(subset)


@given(LABELS, st.integers(0, 80), st.integers(0, 80), SEEDS)
def test_a_smaller_subset_is_contained_in_every_larger_one(labels, one, other, seed):
    small, large = (set(balanced_subset(labels, count, seed).tolist()) for count in sorted((one, other)))
    assert small <= large


@given(LABELS, st.integers(0, 80), SEEDS)
def test_a_subset_is_balanced_within_one_until_a_class_runs_out(labels, count, seed):
    taken = Counter(labels[balanced_subset(labels, count, seed)].tolist())
    sizes = Counter(labels.tolist())
    unexhausted = [taken[label] for label in sizes if taken[label] < sizes[label]]
    most = max(taken.values(), default=0)
    assert all(most - number <= 1 for number in unexhausted)


def test_a_subset_is_random_but_fixed_by_the_seed():
    labels = np.repeat(np.arange(4), 100)
    first = balanced_subset(labels, 40, 3)
    assert np.array_equal(balanced_subset(labels, 40, 3), first)
    assert not np.array_equal(balanced_subset(labels, 40, 4), first)
    assert set(first.tolist()) != {start + offset for start in (0, 100, 200, 300) for offset in range(10)}


def test_the_fingerprint_is_the_sha256_of_id_key_and_label():
    text = b"2\tc.jpg\t1\n0\ta.jpg\t4\n"
    found = fingerprint(np.asarray([2, 0]), ["a.jpg", "b.jpg", "c.jpg"], np.asarray([4, 0, 1]))
    assert found == hashlib.sha256(text).hexdigest()


def test_the_fingerprint_changes_with_id_key_label_and_order():
    keys, labels = ["a", "b", "c"], np.asarray([0, 1, 2])
    found = [
        fingerprint(np.asarray([0, 1]), keys, labels),
        fingerprint(np.asarray([0, 2]), keys, labels),
        fingerprint(np.asarray([1, 0]), keys, labels),
        fingerprint(np.asarray([0]), keys, labels),
        fingerprint(np.asarray([0, 1]), ["a", "B", "c"], labels),
        fingerprint(np.asarray([0, 1]), keys, np.asarray([0, 2, 2])),
        fingerprint(np.asarray([0, 1]), ["b", "a", "c"], np.asarray([1, 0, 2])),
    ]
    assert len(set(found)) == len(found)


def test_the_fingerprint_ignores_samples_outside_the_split():
    split = np.asarray([0, 1])
    one = fingerprint(split, ["a", "b", "c"], np.asarray([0, 1, 2]))
    assert fingerprint(split, ["a", "b", "other"], np.asarray([0, 1, 9])) == one


def test_a_manifest_is_a_hash_over_sorted_names_sizes_and_labels():
    lines = b"a.jpg\t7\t1\nb.jpg\t5\t0\n"
    sizes, labels = np.array([5, 7]), np.array([0, 1])
    expected = hashlib.sha256(lines).hexdigest()
    assert manifest(["b.jpg", "a.jpg"], sizes, labels) == expected
    assert manifest(["a.jpg", "b.jpg"], sizes[::-1], labels[::-1]) == expected
    assert manifest(["a.jpg", "b.jpg"], sizes, labels) != expected
