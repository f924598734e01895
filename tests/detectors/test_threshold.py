import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustfg.core.errors import UserError
from robustfg.detectors import threshold_at


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_never_more_scores_than_allowed_lie_above_and_without_ties_exactly_so_many(values, percent, dtype):
    scores = torch.tensor(values, dtype=dtype)
    allowed = percent * (len(values) + 1) // 100
    tau = threshold_at(scores, percent / 100)
    above = int((~(scores <= tau)).sum())
    assert above <= allowed
    order = sorted(values, reverse=True)
    if allowed and (allowed == len(values) or order[allowed - 1] > order[allowed]):
        assert above == allowed
    assert math.isinf(tau) == (allowed == 0)


def test_the_threshold_is_the_largest_below_the_kth_score():
    scores = torch.arange(99).float()[torch.randperm(99)]
    tau = threshold_at(scores, 0.05)  # k = 5
    assert 93 < tau < 94
    assert torch.nextafter(torch.tensor(tau), torch.tensor(torch.inf)) >= 94


def test_the_realised_rate_is_beta_distributed_and_below_the_asked_one_on_average():
    rng = np.random.default_rng(0)
    n, fpr = 199, 0.05  # k = 10
    realised = [1 - threshold_at(torch.from_numpy(rng.uniform(size=n)), fpr) for _ in range(2000)]
    assert stats.kstest(realised, stats.beta(10, n + 1 - 10).cdf).pvalue > 0.01
    assert stats.kstest(realised, stats.beta(11, n - 10).cdf).pvalue < 1e-6
    assert np.mean(realised) == pytest.approx(0.05, abs=0.001)


def test_a_typed_rate_means_its_decimal_number():
    assert (
        int((torch.arange(99) > threshold_at(torch.arange(99).float(), 0.29)).sum()) == 29
    )  # 0.29 * 100 < 29 in floats


def test_with_too_few_scores_nothing_is_rejected():
    assert threshold_at(torch.arange(98).float(), 0.01) == math.inf
    assert threshold_at(torch.arange(99).float(), 0.01) < 98


@pytest.mark.parametrize(
    ("scores", "fpr", "message"),
    [
        (torch.zeros(0), 0.05, "needs the scores of some calibration samples"),
        (torch.zeros(3, 2), 0.05, "got shape"),
        (torch.tensor([0.0, torch.nan]), 0.05, "1 of 2 calibration scores are not a number"),
        (torch.zeros(3), 1.0, r"must be in \[0, 1\), got 1.0"),
        (torch.zeros(3), -0.1, r"must be in \[0, 1\), got -0.1"),
    ],
)
def test_what_cannot_be_a_threshold_is_refused(scores, fpr, message):
    with pytest.raises(UserError, match=message):
        threshold_at(scores, fpr)
