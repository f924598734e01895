import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from robustfg.detectors.threshold import threshold_at
from robustfg.evaluation.detection.operating import (
    expected_rate,
    keeping,
    needed,
    rejected_of,
    surprise,
    thresholds,
)


@given(st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.1, 0.29, 0.5]), st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_every_redraw_has_the_threshold_that_the_detector_would_get_from_it(n, fpr, levels, seed):
    generator = np.random.default_rng(seed)
    score = generator.integers(0, levels, n).astype(np.float32)
    weight = np.stack([np.ones(n, int), generator.multinomial(n, np.full(n, 1 / n))])
    found = thresholds(score.astype(float), weight, fpr)
    for tau, counts in zip(found, weight, strict=True):
        assert tau == threshold_at(torch.tensor(np.repeat(score, counts)), fpr)


def test_the_threshold_rejects_k_of_scores_without_ties():
    score = np.random.default_rng(0).permutation(199).astype(float)
    assert (score > thresholds(score, np.ones((1, 199), int), 0.05)[0]).sum() == rejected_of(199, 0.05) == 10


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.05, 0.2, 1 / 3])
def test_needed_is_the_smallest_split_of_which_one_may_be_rejected(fpr):
    assert rejected_of(needed(fpr), fpr) == 1
    assert rejected_of(needed(fpr) - 1, fpr) == 0


def test_hundred_times_nought_point_two_nine_is_twenty_nine():
    assert rejected_of(99, 0.29) == 29


def test_the_false_positive_rate_follows_the_beta_law():
    """Uniform scores: the rate at a threshold is 1 - threshold, so its law can be held to Beta(k, n + 1 - k)."""
    generator, n, fpr = np.random.default_rng(0), 99, 0.05
    rates = [1 - thresholds(generator.random(n), np.ones((1, n), int), fpr)[0] for _ in range(400)]
    assert kstest(rates, "beta", args=(5, 95)).pvalue > 0.01
    assert kstest(rates, "beta", args=(6, 94)).pvalue < 0.01
    low, high = expected_rate(n, fpr)
    assert np.mean((np.array(rates) > low) & (np.array(rates) < high)) == pytest.approx(0.95, abs=0.03)
    assert expected_rate(9, 0.05) is None


def test_surprise_is_the_tail_of_the_counts_that_a_threshold_leads_to():
    generator = np.random.default_rng(0)
    n, m, fpr = 59, 40, 0.1
    counts = generator.binomial(m, generator.beta(6, 54, 200_000))
    for rejected in (0, 4, 11):
        tail = min((counts <= rejected).mean(), (counts >= rejected).mean())
        assert surprise(rejected, m, n, fpr) == pytest.approx(min(1, 2 * tail), abs=0.01)
    assert surprise(40, m, n, fpr) < 1e-6
    assert surprise(12, m, n, fpr) > binom(m, fpr).sf(11), "the threshold's own noise is part of it"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
@settings(max_examples=100, deadline=None)
def test_keeping_is_the_smallest_threshold_that_accepts_the_share(values, share):
    score = np.array(values, float)
    tau = keeping(score, share)
    assert (score <= tau).mean() >= share - 1e-12
    assert all((score <= lower).mean() < share for lower in score[score < tau])
