"""Whether test images are apart from those of the training, by name and by content."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from toy import data_module

from robustfg.data import hygiene
from robustfg.data.arrays import ArraySplit
from robustfg.data.hygiene import Trained
from robustfg.evaluation.checks.hygiene import split_hygiene

N = 400


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4), np.uint8)


def split(images, name="all"):
    return ArraySplit(images, np.zeros(len(images), np.int64), name)


ALL = split(pixels(2 * N, 0))
TRAIN, TEST = np.arange(N), np.arange(N, 2 * N)
HALF = Trained((ALL, TRAIN[::2]), [ALL.keys[p] for p in TRAIN[1::2]], "200 train images of the run are gone")


def check(trained, test=TEST, evaluated="test", of=ALL, changed=()):
    data = SimpleNamespace(
        trained=trained, changed=dict(changed), split_of=lambda name: of, positions={evaluated: test}
    )  # fmt: skip
    return split_hygiene(data, evaluated)


def known(*images):
    return {"train": Trained(*images)}


def test_images_apart_by_name_and_content_pass_and_near_duplicates_are_said_to_be_no_part_of_it():
    found = check(known((ALL, TRAIN)))
    assert (found.status, found.count, found.n) == ("pass", 0, N)
    assert "by name and content (near-duplicates are not looked for)" in found.detail
    assert check(None) is None
    assert split_hygiene(data_module(), "test").status == "pass"


@pytest.mark.parametrize(("shared", "status"), [(1, "inconclusive"), (4, "inconclusive"), (5, "fail")])
def test_one_name_that_was_trained_on_is_never_a_pass(shared, status):
    large = split(pixels(4_000, 1))
    for images, test, n in ((ALL, np.r_[TEST[shared:], TRAIN[:shared]], N), (large, np.arange(4_000), 4_000)):
        found = check(known((images, TRAIN if n == N else np.arange(shared))), test, of=images)
        assert (found.status, found.count, found.n) == (status if n == N else "inconclusive", shared, n)
        assert "all/000000 is all/000000" in found.detail


@pytest.mark.parametrize(("shared", "status"), [(0, "pass"), (1, "inconclusive"), (5, "fail")])
def test_the_same_pictures_under_other_names_are_found(shared, status):
    other = split(np.r_[ALL.images[N : N + shared], pixels(50, 2)], "other")
    found = check(known((other, np.arange(len(other.labels)))))
    assert (found.status, found.count) == (status, shared)
    assert found.detail.endswith("all/000400 is other/000000") is (shared > 0)
    twice = split(np.r_[ALL.images[:1], pixels(1_500, 3)], "other")  # as data sets do
    assert check(known((ALL, TRAIN)), np.arange(1_501), of=twice).status == "pass"


def test_names_are_compared_of_all_and_the_check_says_how_many_contents_were(monkeypatch):
    monkeypatch.setattr(hygiene, "MOST", 50)
    found = check(known((ALL, TRAIN)))
    assert found.status == "pass"
    assert "contents of 50 are compared, where 5.8 % of all would show (95 %)" in found.detail
    assert {check(known((ALL, np.r_[TRAIN, at]))).status for at in TEST[1:8]} == {"inconclusive"}


def test_training_images_that_are_gone_are_no_pass_but_their_names_still_count():
    found = check({"train": HALF})
    assert found.status == "inconclusive"
    assert found.detail.endswith(": 200 train images of the run are gone")
    assert check({"train": HALF}, np.r_[TEST, TRAIN[1]]).count == 1
    assert check({"train": HALF}, np.r_[TEST, TRAIN[1:20:2]]).status == "fail"
    assert "are not known" in check({}).detail
    assert check({}).status == "inconclusive"
    for changed in ({"test": 2}, {"train": 2}):
        assert "2 are other files than when the run began" in check(known((ALL, TRAIN)), changed=changed).detail


def test_equal_names_of_another_data_set_are_doubtful_and_equal_contents_a_leak():
    away = Trained((split(pixels(2 * N, 4)), np.arange(2 * N)), elsewhere=True)
    found = check({"train": away})
    assert (found.status, found.count) == ("inconclusive", 0)
    assert "400 have names of images that were trained on elsewhere" in found.detail
    assert check({"train": replace(away, images=(split(ALL.images), np.arange(2 * N)))}).status == "fail"
    assert check({"train": Trained(names=[ALL.keys[N]], elsewhere=True)}).status == "inconclusive"


def test_images_without_contents_are_compared_by_name():
    class Named:
        def __init__(self, of):
            self.keys, self.labels = of.keys, of.labels

    named = Named(ALL)
    found = check(known((named, TRAIN)), of=named)
    assert found.status == "pass"
    assert "trained or chosen on, by name (near" in found.detail
    assert check(known((named, np.r_[TRAIN, TEST[0]])), of=named).status == "inconclusive"


def test_the_validation_split_is_what_checkpoints_are_chosen_on():
    found = check({"train": Trained((ALL, TRAIN)), "val": Trained((ALL, TEST))}, evaluated="val")
    assert (found.status, found.count) == ("inconclusive", 0)
    assert "no val image was trained on, by" in found.detail
    assert found.detail.endswith("checkpoints are chosen on this split")
    assert check({"val": Trained((ALL, TEST), elsewhere=True)}, evaluated="val").status == "fail"
