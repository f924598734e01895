import numpy as np
import pytest
import sklearn.neighbors
import torch
from answers import CLASSES, DIM, answer, learn, samples
from sklearn.preprocessing import normalize

from robustfg.core.errors import UserError
from robustfg.detectors import KernelDensity, LocalIntrinsicDimensionality, NearestNeighbours, PrototypeSimilarity
from robustfg.detectors.bank import Bank

pytestmark = pytest.mark.numeric


def test_kernel_density_is_that_of_scikit_learn_under_the_predicted_class():
    rows, label, index = samples()
    seen, of, _ = samples(40, seed=1)
    detector = learn(KernelDensity(bandwidth=0.9), rows, label, index)
    expected = np.empty(len(seen))
    for k in range(CLASSES):
        density = sklearn.neighbors.KernelDensity(bandwidth=0.9).fit(rows[label == k].numpy())
        if (of == k).any():
            expected[(of == k).numpy()] = -density.score_samples(seen[of == k].numpy())
    constant = DIM / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(detector.score(answer(seen, of)).numpy(), expected - constant, rtol=2e-5)


def test_scotts_rule_takes_the_spread_within_classes_and_every_class_its_own_number():
    rows, label, index = samples()
    detector = learn(KernelDensity(), rows, label, index)
    plain, of = rows.double().numpy(), label.numpy()
    within = plain - np.stack([plain[of == k].mean(0) for k in range(CLASSES)])[of]
    for k in range(CLASSES):
        theirs = sklearn.neighbors.KernelDensity(bandwidth="scott").fit(plain[of == k]).bandwidth_
        assert float(detector.kernels.width[k]) == pytest.approx(np.sqrt((within**2).mean()) * theirs, rel=1e-5)


def test_a_class_without_training_samples_is_judged_by_all():
    rows, label, index = samples()
    label = label.clamp_max(CLASSES - 2)
    seen, of, _ = samples(10, seed=1)
    of = torch.full_like(of, CLASSES - 1)
    detector = learn(KernelDensity(bandwidth=0.9), rows, label, index)
    density = sklearn.neighbors.KernelDensity(bandwidth=0.9).fit(rows.numpy())
    expected = -density.score_samples(seen.numpy()) - DIM / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(detector.score(answer(seen, of)).numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("k", [1, 5, 500])
def test_the_kth_distance_is_that_of_scikit_learn(normalise, k):
    rows, label, index = samples()
    seen, of, _ = samples(40, seed=1)
    detector = learn(NearestNeighbours(neighbours=k, normalise=normalise), rows, label, index)
    known, new = (normalize(x.numpy()) if normalise else x.numpy() for x in (rows, seen))
    theirs = sklearn.neighbors.NearestNeighbors(n_neighbors=min(k, len(known))).fit(known)
    expected = theirs.kneighbors(new)[0][:, -1]
    np.testing.assert_allclose(detector.score(answer(seen, of)).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_local_intrinsic_dimensionality_is_the_papers_formula():
    rows, label, index = samples()
    seen, of, _ = samples(30, seed=1)
    detector = learn(LocalIntrinsicDimensionality(neighbours=8, per_class=1000), rows, label, index)
    for sample, score in zip(seen.double().numpy(), detector.score(answer(seen, of)).tolist(), strict=True):
        r = np.sort(np.linalg.norm(rows.double().numpy() - sample, axis=1))[:8]
        assert score == pytest.approx(-1 / np.mean(np.log(r / r[-1])), rel=1e-4)


def test_local_intrinsic_dimensionality_of_a_plane_is_two():
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(4000, 2, generator=generator) @ torch.randn(2, DIM, generator=generator)
    label = torch.arange(4000) % CLASSES
    detector = learn(
        LocalIntrinsicDimensionality(neighbours=100, per_class=1000), flat, label, torch.arange(4000), batch=500
    )
    middle = flat.mean(0, keepdim=True)
    assert float(detector.score(answer(middle, label[:1]))) == pytest.approx(2, rel=0.15)


def test_several_layers_are_summed():
    rows, label, index = samples()
    seen, of, _ = samples(30, seed=1)

    def score(names):
        return learn(LocalIntrinsicDimensionality(features=names), rows, label, index).score(answer(seen, of))

    torch.testing.assert_close(score(["embedding", "inner"]), score(["embedding"]) + score(["inner"]))


def test_without_a_map_the_prototype_is_the_class_mean():
    rows, label, index = samples()
    seen, of, _ = samples(30, seed=1)
    detector = learn(PrototypeSimilarity(), rows, label, index)
    means = torch.stack([rows[label == k].mean(0) for k in range(CLASSES)])
    expected = (seen - means[of]).square().sum(1)
    torch.testing.assert_close(detector.score(answer(seen, of)), expected)


def test_with_a_map_the_nearest_prototype_of_the_predicted_class_counts():
    rows, label, _ = samples(7)
    distance = torch.rand(7, CLASSES, 3, 2, generator=torch.Generator().manual_seed(0))
    scores = PrototypeSimilarity().score(answer(rows, label, {"class_distance": distance}))
    assert scores.tolist() == [float(distance[i, label[i]].min()) for i in range(7)]


def test_the_kept_samples_are_balanced_and_depend_on_ids_alone():
    rows, label, index = samples(500)
    bank = Bank(index, label, (rows,))
    kept = bank.thinned(6, seed=0)
    assert torch.bincount(kept.label).tolist() == [6] * CLASSES
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    again = Bank(index[order], label[order], (rows[order],)).thinned(6, seed=0)
    assert torch.equal(kept.index, again.index)
    assert torch.equal(kept.features[0], again.features[0])
    assert not torch.equal(kept.index, bank.thinned(6, seed=1).index)
    whole, shuffled = bank.thinned(None, 0), Bank(index[order], label[order], (rows[order],)).thinned(None, 0)
    assert whole.index.tolist() == [i for _, i in sorted(zip(label.tolist(), index.tolist(), strict=True))]
    assert torch.equal(whole.features[0], shuffled.features[0])
    assert torch.equal(whole.features[0], rows[torch.tensor([index.tolist().index(i) for i in whole.index])])


def test_the_kept_samples_are_spread_over_the_ids():
    index = torch.arange(10_000)
    kept = Bank(index, torch.zeros(10_000, dtype=torch.int64), (torch.zeros(10_000, 1),)).thinned(1000, seed=0).index
    assert 4700 < float(kept.double().mean()) < 5300
    assert 450 < int((kept % 2).sum()) < 550


def test_samples_beyond_need_are_thrown_away_meanwhile(monkeypatch):
    monkeypatch.setattr("robustfg.detectors.bank.ROOM", 10)
    rows, label, index = samples(600)
    look = NearestNeighbours(per_class=5).fit()
    for start in range(0, 600, 20):
        part = slice(start, start + 20)
        look.see(answer(rows[part], label[part]), label[part], index[part])
        assert look.held <= 2 * 5 * CLASSES + 10 + 20
    few = learn(NearestNeighbours(per_class=5), rows, label, index)
    monkeypatch.undo()
    assert torch.equal(few.samples.rows, learn(NearestNeighbours(per_class=5), rows, label, index).samples.rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KernelDensity(bandwidth=0), "detector.bandwidth must be > 0"),
        (lambda: NearestNeighbours(neighbours=0), "detector.neighbours must be >= 1"),
        (lambda: LocalIntrinsicDimensionality(neighbours=1), "detector.neighbours must be >= 2"),
        (lambda: NearestNeighbours(per_class=0), "detector.per_class must be >= 1"),
    ],
)
def test_impossible_options_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
