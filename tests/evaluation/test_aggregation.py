import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import row

from robustfg.evaluation.aggregation import correct_per_sample, require_complete, summarise
from robustfg.evaluation.records import CLEAN, table_of


@settings(deadline=None)
@given(st.data())
def test_worst_case_is_the_mean_of_the_minimum(data):
    n, restarts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    ids = data.draw(st.lists(st.integers(0, 99), min_size=n, max_size=n, unique=True))
    names = ["a", "b"]
    correct = {
        (name, restart, i): data.draw(st.booleans())
        for name in [CLEAN, *names]
        for restart in range(1 if name == CLEAN else restarts)
        for i in ids
    }
    rows = [row(i, name, restart, value) for (name, restart, i), value in correct.items()]
    table = table_of(data.draw(st.permutations(rows)))
    summary = summarise(table, {name: {"norm": "linf"} for name in names})
    survivors = [i for i in ids if all(value for (_, _, j), value in correct.items() if j == i)]
    assert summary["n"] == n
    assert summary["worst_case"]["correct"] == len(survivors)
    for name in names:
        withstood = [
            i for i in ids if all(value for (other, _, j), value in correct.items() if (other, j) == (name, i))
        ]
        assert summary["attacks"][name]["correct"] == len(withstood)
    assert summary["clean"]["correct"] == sum(value for (name, _, _), value in correct.items() if name == CLEAN)


def test_worst_case_is_lower_than_every_attack_when_they_break_different_samples():
    rows = [row(i, CLEAN, 0, True) for i in range(2)]
    rows += [row(0, "a", 0, False), row(1, "a", 0, True), row(0, "b", 0, True), row(1, "b", 0, False)]
    summary = summarise(table_of(rows), {"a": {}, "b": {}})
    assert [summary["attacks"][name]["correct"] for name in ("a", "b")] == [1, 1]
    assert summary["worst_case"]["correct"] == 0


def test_a_checks_success_on_some_samples_counts_in_the_worst_case():
    rows = [row(i, name, 0, True) for i in range(3) for name in (CLEAN, "a")] + [row(2, "check:reference_x", 0, False)]
    summary = summarise(table_of(rows), {"a": {}}, also=["check:reference_x"])
    assert summary["attacks"]["a"]["correct"] == 3
    assert summary["worst_case"]["correct"] == 2


def test_costs_are_summed_over_samples_and_restarts():
    rows = [row(i, name, r, True) for i in range(3) for name, r in ((CLEAN, 0), ("a", 0), ("a", 1))]
    attack = summarise(table_of(rows), {"a": {}})["attacks"]["a"]
    assert (attack["forwards"], attack["backwards"], attack["seconds"]) == (12, 6, 3.0)


def test_samples_come_in_the_order_of_their_ids():
    table = table_of([row(5, CLEAN, 0, False), row(2, CLEAN, 0, True)])
    assert np.array_equal(correct_per_sample(table, [CLEAN]), [True, False])


@pytest.mark.parametrize("fault", ["missing", "twice", "foreign", "one restart missing"])
def test_every_sample_exactly_once_or_the_evaluation_fails(fault):
    rows = [row(i, name, r, True) for i in (3, 5) for name, r in ((CLEAN, 0), ("a", 0), ("a", 1))]
    require_complete(table_of(rows), np.array([5, 3]), {"a": 2})
    faulty = {
        "missing": rows[3:],
        "twice": [*rows, rows[0]],
        "foreign": [*rows[:3], *({**old, "index": 9} for old in rows[3:])],
        "one restart missing": rows[:-1],
    }[fault]
    with pytest.raises(RuntimeError, match="records for 2 samples"):
        require_complete(table_of(faulty), np.array([5, 3]), {"a": 2})


def test_a_cascade_tells_what_is_left_and_what_was_spent_after_every_stage():
    stages = {"cheap": {"rounds": 1, "steps": 1}, "dear": {"rounds": 2, "steps": 9}}
    rows = [row(i, CLEAN, 0, True) for i in range(3)]
    outcome = {0: (False, False, False), 1: (True, True, False), 2: (True, True, True)}
    for i, rounds in outcome.items():
        for r, right in enumerate(rounds):
            attacked = r == 0 or rounds[r - 1]
            rows.append(
                row(i, "all", r, right, forwards=10**r * attacked, backwards=int(attacked), seconds=0.25 * attacked)
            )
    told = summarise(table_of(rows), {"all": {"stages": stages}})["attacks"]["all"]
    assert told["correct"] == 1
    cheap, dear = told["stages"]["cheap"], told["stages"]["dear"]
    assert (cheap["correct"], cheap["n"], cheap["forwards"], cheap["backwards"], cheap["seconds"]) == (2, 3, 3, 3, 0.75)
    assert (dear["correct"], dear["n"], dear["forwards"], dear["backwards"], dear["seconds"]) == (1, 3, 220, 4, 1.0)
    assert dear["steps"] == 9
