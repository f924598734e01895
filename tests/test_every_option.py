"""Every option with values that it cannot take: one line that names it, or a run. A part of the sweep of fuzzed.py."""

import pytest
from fuzzed import option_files, small, sweep

FILES = [entry for entry in option_files() if small(*entry)]
PARTS = 4
EVERY = 293
"""One of so many combinations is tried here; ``python tests/fuzzed.py`` tries all."""


def test_every_group_is_tried():
    assert {"attack", "loss", "training", "trainer", "data", "detector", ""} <= {group for group, _ in FILES}


@pytest.mark.parametrize("part", range(PARTS))
def test_a_value_that_an_option_cannot_take_is_told_in_one_line_that_names_it(part):
    assert list(sweep(lambda number: number % EVERY == 0, FILES[part::PARTS])) == []
