"""Options with values that they cannot take: one line that names the option, or a run. A sample of fuzzed.py."""

from fuzzed import option_files, sample


def test_every_command_and_group_is_tried():
    tried = {entry[:2] for entry in option_files()}
    assert {("train", group) for group in ("attack", "loss", "training", "trainer", "data", "detector", "")} <= tried
    assert {("evaluate", ""), ("evaluate", "data"), ("predict", "")} <= tried


def test_a_value_that_an_option_cannot_take_is_told_in_one_line_that_names_it():
    assert sample(each=3) == []
