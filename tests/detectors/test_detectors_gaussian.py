import numpy as np
import pytest
import torch
from answers import CLASSES, answer, learn, samples
from sklearn.covariance import OAS, EmpiricalCovariance, ShrunkCovariance

from robustfg.core.errors import UserError
from robustfg.detectors import Mahalanobis, RelativeMahalanobis
from robustfg.detectors.moments import Moments
from robustfg.detectors.shrinkage import oas_share, whitening

pytestmark = pytest.mark.numeric


def centred(rows, label):
    means = np.stack([rows[label == k].mean(0) for k in range(CLASSES)])
    return rows - means[label], means


def with_estimator(estimator, rows, label, seen):
    """Scores by scikit-learn: the estimator on class-centred samples, the least distance over the classes."""
    rows, label, seen = rows.double().numpy(), label.numpy(), seen.double().numpy()
    within, means = centred(rows, label)
    fitted = estimator.fit(within)
    return np.stack([fitted.mahalanobis(seen - mean) for mean in means], 1).min(1)


@pytest.mark.parametrize(
    ("shrinkage", "estimator"),
    [
        (0.0, EmpiricalCovariance(assume_centered=True)),
        (0.3, ShrunkCovariance(shrinkage=0.3, assume_centered=True)),
        (1.0, ShrunkCovariance(shrinkage=1.0, assume_centered=True)),
    ],
)
def test_mahalanobis_is_that_of_scikit_learn(shrinkage, estimator):
    rows, label, index = samples()
    seen, of, _ = samples(40, seed=1)
    detector = learn(Mahalanobis(shrinkage=shrinkage), rows, label, index)
    expected = with_estimator(estimator, rows, label, seen)
    np.testing.assert_allclose(detector.score(answer(seen, of)).numpy(), expected, rtol=2e-5)


def test_the_estimated_share_is_that_of_the_paper_and_scikit_learns_but_for_two_over_d():
    rows, label, _ = samples(300, dim=40)
    within, _ = centred(rows.double().numpy(), label.numpy())
    covariance = within.T @ within / len(within)
    n, p = within.shape
    squares, trace = np.trace(covariance @ covariance), np.trace(covariance)
    paper = ((1 - 2 / p) * squares + trace**2) / ((n + 1 - 2 / p) * (squares - trace**2 / p))
    share = oas_share(torch.from_numpy(covariance), n)
    assert share == pytest.approx(paper, rel=1e-12)
    theirs = OAS(assume_centered=True).fit(within).shrinkage_
    assert share == pytest.approx(theirs, rel=2 / p)
    assert share != pytest.approx(theirs, rel=1e-6)


def test_the_estimated_share_is_what_is_used():
    rows, label, index = samples()
    seen, of, _ = samples(20, seed=1)
    within, _ = centred(rows.double().numpy(), label.numpy())
    share = oas_share(torch.from_numpy(within.T @ within / len(within)), len(within))
    scores = [learn(Mahalanobis(shrinkage=s), rows, label, index).score(answer(seen, of)) for s in (None, share)]
    torch.testing.assert_close(*scores)


def test_relative_mahalanobis_subtracts_the_distance_to_all_samples():
    rows, label, index = samples()
    seen, of, _ = samples(40, seed=1)
    detector = learn(RelativeMahalanobis(shrinkage=0.1), rows, label, index)
    near = with_estimator(ShrunkCovariance(shrinkage=0.1, assume_centered=True), rows, label, seen)
    background = ShrunkCovariance(shrinkage=0.1).fit(rows.double().numpy()).mahalanobis(seen.double().numpy())
    np.testing.assert_allclose(detector.score(answer(seen, of)).numpy(), near - background, rtol=1e-4, atol=1e-4)


def test_several_features_are_standardised_by_their_training_distances_and_summed():
    rows, label, index = samples(3000)
    seen, of, _ = samples(40, seed=1)
    detector = learn(Mahalanobis(features=["embedding", "inner"], shrinkage=0.0), rows, label, index)
    assert detector.layers == ("inner",)
    parts = []
    for feature in ("embedding", "inner"):
        pick = (lambda out: out.embedding) if feature == "embedding" else (lambda out: out.layers["inner"])
        known, new = pick(answer(rows, label)), pick(answer(seen, of))
        distance = with_estimator(EmpiricalCovariance(assume_centered=True), known, label, new)
        dim = known.shape[1]
        parts.append((distance - dim) / np.sqrt(2 * dim))
    np.testing.assert_allclose(detector.score(answer(seen, of)).numpy(), sum(parts), rtol=1e-4, atol=1e-4)
    summed = learn(
        Mahalanobis(features=["embedding", "inner"], shrinkage=0.0, standardise=False), rows, label, index
    ).score(answer(seen, of))
    singles = [
        learn(Mahalanobis(features=[name], shrinkage=0.0), rows, label, index) for name in ("embedding", "inner")
    ]
    torch.testing.assert_close(summed, sum(single.score(answer(seen, of)) for single in singles))


def test_the_expected_distance_is_the_mean_over_training_samples_of_their_own_class():
    rows, label, index = samples(200)
    detector = learn(Mahalanobis(features=["embedding", "inner"], shrinkage=0.4), rows, label, index)
    white = detector.gaussians[0].white
    within, _ = centred(rows.double().numpy(), label.numpy())
    mapped = within @ white.matrix.double().numpy().T
    assert float(white.expected) == pytest.approx((mapped**2).sum(1).mean(), rel=1e-5)


def test_whitening_turns_a_covariance_into_the_identity():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = whitening(half @ half.t())
    torch.testing.assert_close(matrix @ half @ half.t() @ matrix.t(), torch.eye(5, dtype=torch.float64))


def test_singular_covariances_still_tell_near_from_far():
    flat = torch.zeros(3, 3, dtype=torch.float64)
    torch.testing.assert_close(whitening(flat), torch.eye(3, dtype=torch.float64))
    flat[0, 0] = 4.0
    matrix = whitening(flat)
    assert matrix.isfinite().all()
    assert matrix[0, 0].item() == pytest.approx(0.5, rel=1e-3)


def test_the_state_does_not_grow_with_the_training_set():
    def size(count):
        look = Mahalanobis().fit()
        rows, label, index = samples(count)
        look.see(answer(rows, label), label, index)
        return sum(t.numel() for m in look.findings() for t in (m.count, m.sums, m.products))

    assert size(50) == size(5000)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(UserError, match=r"detector.shrinkage must be in \[0, 1\]"):
        Mahalanobis(shrinkage=share)


@pytest.mark.parametrize("dim", [1, 3, 130])
def test_moments_are_naive_sums_over_batches_of_any_size(dim):
    rows, label = torch.randn(50, dim, generator=torch.Generator().manual_seed(0)), torch.arange(50) % CLASSES
    moments = Moments.none(CLASSES, dim, products=True)
    for part in (slice(0, 1), slice(1, 1), slice(1, 30), slice(30, 50)):
        moments.add(rows[part].t().contiguous().t(), label[part])
    plain = rows.double()
    assert moments.count.tolist() == [(label == k).sum() for k in range(CLASSES)]
    torch.testing.assert_close(moments.sums, torch.stack([plain[label == k].sum(0) for k in range(CLASSES)]))
    torch.testing.assert_close(moments.overall(), torch.cov(plain.t(), correction=0).reshape(dim, dim))
    centred = plain - moments.means()[label]
    torch.testing.assert_close(moments.within(), centred.t() @ centred / 50)
