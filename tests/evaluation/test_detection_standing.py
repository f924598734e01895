import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import row

from robustfg.evaluation.aggregation import correct_per_sample
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.detection.rejection import by_size, forced
from robustfg.evaluation.detection.standing import Standing
from robustfg.evaluation.detection.thresholded import ccat, mcat_code
from robustfg.evaluation.records import CLEAN, table_of

INF = float("inf")
score = st.integers(0, 6).map(float)
attempt = st.tuples(st.booleans(), score, st.none() | score | st.just(INF))
samples = st.lists(st.tuples(st.booleans(), score, st.lists(attempt, min_size=2, max_size=2)), min_size=1, max_size=12)


def rows_of(drawn):
    """One clean row and one row of each of two attacks; a sample that is wrong when clean is not attacked."""
    rows = []
    for index, (right, clean, attempts) in enumerate(drawn):
        rows.append(row(index, CLEAN, 0, right, evidence={"score/d": clean}))
        for name, (correct, value, least) in zip("ab", attempts, strict=True):
            attacked = {"score/d": value} | ({} if least is None else {"least/d": least})
            evidence = attacked if right else {"score/d": clean}
            rows.append(row(index, name, 0, right and correct, norm=0.5, evidence=evidence))
    return rows


def naive_robust(drawn, names, tau):
    """Sample by sample, as it is defined."""
    found = []
    for right, clean, attempts in drawn:
        ok = right and clean <= tau
        for name, (correct, value, least) in zip("ab", attempts, strict=True):
            if name in names and right:
                ok = ok and not (not correct and value <= tau)
                ok = ok and not (least is not None and least < INF and least <= tau)
        found.append(ok)
    return found


@given(samples, st.sampled_from(["a", "b", "ab", ""]), st.integers(-1, 7).map(float) | st.just(INF))
@settings(max_examples=300, deadline=None)
def test_joint_robustness_is_a_naive_recomputation_sample_by_sample(drawn, names, tau):
    standing = Readings(table_of(rows_of(drawn)), "d").standing(names)
    assert standing.robust(tau).tolist() == naive_robust(drawn, names, tau)


@given(samples)
@settings(max_examples=100, deadline=None)
def test_without_detector_it_is_the_worst_case_and_more_attacks_never_help_the_defender(drawn):
    drawn = [(right, clean, [(ok, s, None) for ok, s, _ in attempts]) for right, clean, attempts in drawn]
    table = table_of(rows_of(drawn))
    readings = Readings(table, "d")
    both, one = readings.standing("ab"), readings.standing("a")
    assert np.array_equal(both.robust(INF), correct_per_sample(table, [CLEAN, "a", "b"]))
    for tau in (0.0, 3.0, INF):
        assert not (both.robust(tau) & ~one.robust(tau)).any()
        assert not (both.robust(tau) & ~both.accepted(tau)).any()


@given(samples)
@settings(max_examples=100, deadline=None)
def test_samples_move_once_into_and_once_out_of_robustness_as_the_threshold_rises(drawn):
    """Accepted from the clean score on, reached from the attack's score on: the accuracy is a sum of such spans."""
    standing = Readings(table_of(rows_of(drawn)), "d").standing("ab")
    robust = standing.robust(np.arange(-1, 8, dtype=float)).astype(int)
    changes = np.diff(robust, axis=0, prepend=0)
    assert ((changes == 1).sum(0) <= 1).all()
    assert ((changes == -1).sum(0) <= 1).all()
    accepted = standing.accepted(np.arange(-1, 8, dtype=float)).astype(int)
    assert (np.diff(accepted, axis=0) >= 0).all()


@given(samples, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_rows_changes_nothing(drawn, random):
    rows = rows_of(drawn)
    shuffled = random.sample(rows, len(rows))
    for tau in (1.0, 3.0):
        found = [Readings(table_of(given), "d").standing("ab").robust(tau) for given in (rows, shuffled)]
        assert np.array_equal(*found)


def test_a_wrong_image_below_the_returned_one_counts_even_where_the_search_went_on_or_gave_up():
    rows = [
        row(0, CLEAN, 0, True, evidence={"score/d": 1.0}),
        row(0, "a", 0, True, evidence={"score/d": 0.5, "least/d": 4.0}),
        row(1, CLEAN, 0, True, evidence={"score/d": 1.0}),
        row(1, "a", 0, False, evidence={"score/d": 5.0, "least/d": 2.0}),
        row(2, CLEAN, 0, True, evidence={"score/d": 1.0}),
        row(2, "a", 0, True, evidence={"score/d": 0.5, "least/d": INF}),
    ]
    standing = Readings(table_of(rows), "d").standing("a")
    assert standing.reached.tolist()[:2] == [4.0, 2.0]
    assert np.isnan(standing.reached[2])
    assert standing.robust(3.0).tolist() == [True, False, True]
    assert standing.robust(INF).tolist() == [False, False, True]


@given(samples)
@settings(max_examples=200, deadline=None)
def test_both_thresholded_errors_are_their_formulas_sample_by_sample(drawn):
    standing = Readings(table_of(rows_of(drawn)), "d").standing("ab")
    calibration = np.arange(7.0)
    errors = accepted = 0
    for right, clean, attempts in drawn:
        images = [(not ok, s, INF if least is None else least) for ok, s, least in attempts] if right else []
        fooled = any((wrong and s <= 6) or least <= 6 for wrong, s, least in images)
        errors += max(not right and clean <= 6, fooled)
        accepted += max(clean <= 6, fooled, any(s <= 6 for _, s, _ in images))
    found = ccat(standing, calibration)
    assert (found["errors"], found["n"], found["tau"]) == (errors, accepted, 6.0)
    kept = sorted(clean for right, clean, _ in drawn if right)
    tau = kept[-1] if kept else -INF  # 99 % of fewer than 100 is all
    wrong = sum(
        right and any((not ok and s <= tau) or (least is not None and least <= tau) for ok, s, least in attempts)
        for right, _, attempts in drawn
    )
    found = mcat_code(standing, calibration)
    assert (found["errors"], found["n"]) == (wrong, len(drawn))


def test_mcats_error_leaves_out_clean_errors_and_counts_rejected_samples():
    right = np.array([True, True, False, True])
    standing = Standing(
        right, np.array([1.0, 1.0, 1.0, 9.0]), np.array([np.nan, 0.5, np.nan, np.nan]), np.array([1.0, 0.5, 1.0, 1.5])
    )
    calibration = np.full(50, 2.0)
    assert ccat(standing, calibration)["error"] == 2 / 4  # the last one is accepted once it is attacked
    assert mcat_code(standing, calibration)["error"] == 1 / 4


def images_of(rows, joint=False):
    readings = Readings(table_of(rows), "d")
    return readings, readings.images(["a", "b"], {"a": 1.0, "b": 2.0}, joint=joint)


def test_of_several_restarts_a_wrong_image_is_handed_out_and_carried_rows_are_skipped():
    rows = [
        row(0, CLEAN, 0, True, evidence={"score/d": 1.0}),
        row(0, "a", 0, True, margin=0.1, evidence={"score/d": 0.2}),
        row(0, "a", 1, False, margin=-0.5, norm=0.5, evidence={"score/d": 3.0}),
        row(0, "a", 2, False, margin=-0.1, norm=0.25, evidence={"score/d": 2.0}),
        row(0, "b", 0, False, margin=-0.1, norm=0.5, evidence={"score/d": 7.0}),
        row(0, "b", 1, False, margin=-0.1, norm=0.5),
        row(1, CLEAN, 0, False, evidence={"score/d": 1.0}),
        row(1, "a", 0, False, evidence={"score/d": 1.0}),
        row(1, "b", 0, False, evidence={"score/d": 1.0}),
    ]
    _, found = images_of(rows)
    assert (found.sample.tolist(), found.score.tolist(), found.size.tolist()) == ([0, 0], [3.0, 7.0], [0.5, 0.25])
    _, found = images_of(rows, joint=True)
    assert (found.score.tolist(), found.size.tolist()) == ([2.0, 7.0], [0.25, 0.25])
    worst = found.worst()
    assert (worst.sample.tolist(), worst.score.tolist()) == ([0], [2.0])


def test_forced_rejection_and_rejection_by_size_are_counted_by_hand():
    rows = []
    for index, (clean, sizes) in enumerate([(0.0, (1.0, 0.1)), (9.0, (0.5, 0.5)), (0.0, (0.0, 0.1))]):
        rows.append(row(index, CLEAN, 0, True, evidence={"score/d": clean}))
        for name, norm in zip("ab", sizes, strict=True):
            rejected = 9.0 if norm in (1.0, 0.1) else 0.0
            rows.append(row(index, name, 0, name == "a", norm=norm, evidence={"score/d": rejected}))
    readings, images = images_of(rows)
    found = forced(readings, images, tau=1.0)
    assert (found["rejected"], found["n"]) == (1, 2)
    strata = by_size(readings, images, tau=1.0)
    assert {border: (part["rejected"], part["n"]) for border, part in strata.items()} == {
        "0": (1, 3), "0.25": (2, 4), "0.5": (0, 1), "0.75": (0, 0), "1": (1, 1),
    }  # fmt: skip
    assert strata["0.75"]["share"] is None


def test_no_image_is_no_error():
    readings = Readings(table_of([row(0, CLEAN, 0, True, evidence={"score/d": 1.0})]), "d")
    empty = readings.images(["a"], {"a": 1.0}, joint=False)
    assert len(empty.score) == len(empty.worst().score) == 0
    assert forced(readings, empty, 2.0)["share"] == 0
    assert readings.standing(["a"]).robust(2.0).tolist() == [True]
