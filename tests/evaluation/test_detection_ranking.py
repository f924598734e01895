import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from robustfg.evaluation.detection.ranking import detected, ranking
from robustfg.evaluation.detection.redraws import interval, redraws

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda values: np.array(values, float) / 4)


def truth(positive, negative):
    return np.r_[np.ones(len(positive)), np.zeros(len(negative))], np.r_[positive, negative]


@given(scores, scores)
@settings(max_examples=200, deadline=None)
def test_areas_and_rates_are_scikit_learns_with_any_ties(positive, negative):
    label, score = truth(positive, negative)
    found = {name: values[0] for name, values in ranking(positive, negative).items()}
    assert found["auroc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert found["aupr_out"] == pytest.approx(average_precision_score(label, score), abs=1e-12)
    assert found["aupr_in"] == pytest.approx(average_precision_score(1 - label, -score), abs=1e-12)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert found["fpr_at_95_tpr"] == pytest.approx(fpr[tpr >= 0.95 - 1e-12].min(), abs=1e-12)


@given(scores, scores)
@settings(max_examples=100, deadline=None)
def test_auroc_is_the_chance_that_an_anomaly_scores_higher_and_ties_count_half(positive, negative):
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert ranking(positive, negative)["auroc"][0] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_log_likelihoods_far_outside_the_unit_interval_are_ranked():
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(2100, 30, 400), generator.normal(2000, 30, 300)
    expected = roc_auc_score(*truth(positive, negative))
    assert 0.98 < expected < 1
    assert ranking(positive, negative)["auroc"][0] == pytest.approx(expected, abs=1e-12)


@given(scores, scores, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_weights_are_repetitions_and_order_is_nothing(positive, negative, seed):
    generator = np.random.default_rng(seed)
    counts = [generator.integers(0, 4, (3, len(side))) for side in (positive, negative)]
    found = ranking(positive, negative, tuple(counts))
    for draw in range(3):
        repeated = [np.repeat(side, count[draw]) for side, count in zip((positive, negative), counts, strict=True)]
        if not all(len(side) for side in repeated):
            assert np.isnan(found["auroc"][draw])
            continue
        shuffled = [generator.permutation(side) for side in repeated]
        for name, values in ranking(*shuffled).items():
            assert found[name][draw] == pytest.approx(values[0], abs=1e-12), name


def test_without_anomalies_nothing_is_told():
    assert all(np.isnan(value[0]) for value in ranking(np.zeros(0), np.ones(3)).values())
    assert all(np.isnan(value[0]) for value in ranking(np.zeros(0), np.zeros(0)).values())


@given(scores, st.lists(st.integers(-6, 6), min_size=2, max_size=2), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_detected_is_the_share_above_the_threshold(positive, levels, seed):
    tau = np.array(levels) / 4
    weight = np.random.default_rng(seed).integers(1, 4, (2, len(positive)))
    assert np.allclose(detected(positive, tau), [(positive > level).mean() for level in tau])
    repeated = [np.repeat(positive, counts) for counts in weight]
    expected = [(side > level).mean() for side, level in zip(repeated, tau, strict=True)]
    assert np.allclose(detected(positive, tau, weight), expected)


def test_redraws_keep_the_size_of_every_stratum_and_cover_all_samples():
    strata = np.array([0, 0, 0, 1, 1, 2])
    counts = redraws(strata, 2000, np.random.default_rng(0))
    for stratum, size in ((0, 3), (1, 2), (2, 1)):
        assert (counts[:, strata == stratum].sum(1) == size).all()
    assert np.allclose(counts.mean(0), 1, atol=0.1)
    assert np.array_equal(counts, redraws(strata, 2000, np.random.default_rng(0)))


def test_the_bootstrap_interval_of_an_auroc_agrees_with_the_closed_form_standard_error():
    """Hanley and McNeil (1982), equation 1, for exponential scores: Q1 = A / (2 - A), Q2 = 2 A² / (1 + A)."""
    generator = np.random.default_rng(1)
    n, rate = 300, 3.0
    positive, negative = generator.exponential(rate, n), generator.exponential(1, n)
    area = rate / (1 + rate)
    variance = area * (1 - area) + (n - 1) * (area / (2 - area) + 2 * area**2 / (1 + area) - 2 * area**2)
    weights = [redraws(np.zeros(n, int), 1000, generator) for _ in range(2)]
    low, high = interval(ranking(positive, negative, tuple(weights))["auroc"])
    assert low < area < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance) / n, rel=0.15)


def test_an_interval_of_nothing_is_none():
    assert interval(np.array([np.nan, np.nan])) is None
