"""The option ``unknown`` on its way from the command line to the evaluation."""

import pytest
from commands import config_of

from robustfg.cli.assemble import data_of, evaluation_of
from robustfg.core.errors import UserError
from robustfg.train import train


def evaluation(tmp_path, *overrides):
    config = config_of("train", *overrides)
    return evaluation_of(config, tmp_path, data_of(config))


def test_chosen_sets_reach_the_evaluation_and_differ_from_the_data(tmp_path):
    made = evaluation(tmp_path, "detector=energy", "unknown=birds", "unknown.birds_far.images=7")
    assert list(made.detection.unknown) == ["birds_near", "birds_far"]
    assert [len(unknown.images.labels) for unknown in made.detection.unknown.values()] == [480, 7]
    assert not set(made.detection.unknown["birds_near"].classes) & set(data_of(config_of("train")).classes)


def test_two_options_are_two_sets(tmp_path):
    made = evaluation(tmp_path, "detector=energy", "unknown=[birds_far,digits]")
    assert list(made.detection.unknown) == ["birds_far", "digits"]


@pytest.mark.parametrize("words", [(), ("detector=none", "unknown=none")])
def test_nothing_is_watched_where_nothing_is_chosen(tmp_path, words):
    assert evaluation(tmp_path, *words).detection is None


def test_unknown_images_without_a_detector_are_told_before_training(tmp_path):
    with pytest.raises(UserError, match="unknown: .* choose one such as detector=energy, or leave unknown out"):
        train(config_of("train", "unknown=birds_far"), tmp_path / "run", command=[])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("unknown=folder",), "unknown.folder.root is not set"),
        (("unknown=birds", "data=digits"), "need data=birds"),
        (("unknown=birds_far", "+unknown.birds_far.typo=1"), "no option unknown.birds_far.typo"),
    ],
)
def test_a_set_that_cannot_be_made_is_told_by_its_option(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        evaluation(tmp_path, "detector=energy", *words)
