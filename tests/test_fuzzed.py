"""Options with values that they cannot or may not take: one plain line that names them, or a run."""

import warnings

import pytest
from fuzzed import sweep

EVERY = 149
"""Of the combinations, which ``python tests/fuzzed.py`` tries all."""


@pytest.mark.parametrize("part", [0])
def test_every_value_is_used_or_refused_in_one_line(part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = list(sweep(lambda number: number % EVERY == part))
    assert faults == []
