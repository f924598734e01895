import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from test_gaussianity import embeddings_of

from robustfg.evaluation import picture
from robustfg.evaluation.picture import discriminant, write_picture
from robustfg.evaluation.scatter import scatter_of


def drawn(path, points, labels, classes):
    write_picture(embeddings_of(points, labels), classes, path)
    return np.load(path)


def test_a_flat_embedding_is_shown_as_it_is_with_the_means_of_its_classes(tmp_path):
    points, labels = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 3
    found = drawn(tmp_path / "e.npz", points, labels, 4)
    assert np.allclose(found["points"], points, atol=1e-6)
    assert (found["label"] == labels).all()
    assert (found["index"] == np.arange(40)).all()
    assert np.allclose(found["means"][:3], [points[labels == k].mean(0) for k in range(3)], atol=1e-6)
    assert np.isnan(found["means"][3]).all()


def test_of_many_samples_a_balanced_part_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "POINTS", 12)
    points, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) // 15
    found = drawn(tmp_path / "e.npz", points, labels, 4)
    assert np.bincount(found["label"]).tolist() == [3, 3, 3, 3]
    assert np.allclose(found["points"], points[found["index"]], atol=1e-6)


def test_the_directions_are_fishers_where_samples_abound():
    generator = np.random.default_rng(1)
    labels = np.arange(20000) % 4
    points = (generator.normal(size=(20000, 6)) + 2 * generator.normal(size=(4, 6))[labels]) @ generator.normal(
        size=(6, 6)
    )
    axes = discriminant(scatter_of(embeddings_of(points, labels), 4)).numpy()
    theirs = LinearDiscriminantAnalysis(n_components=2, solver="eigen").fit(points, labels).scalings_[:, :2]
    for ours, other in zip((points @ axes).T, (points @ theirs).T, strict=True):
        assert abs(np.corrcoef(ours, other)[0, 1]) == pytest.approx(1, abs=1e-3)


def test_classes_that_do_not_differ_are_not_shown_apart_even_where_dimensions_abound(tmp_path):
    points, labels = np.random.default_rng(2).normal(size=(120, 500)), np.arange(120) % 3
    found = drawn(tmp_path / "e.npz", points, labels, 3)
    assert str(found["axes"]) == "discriminant"
    assert len(found["index"]) == 60
    means = np.stack([found["points"][found["label"] == k].mean(0) for k in range(3)])
    assert np.allclose(means, found["means"], atol=1e-4)
    inside = np.sqrt(np.mean([found["points"][found["label"] == k].var(0).sum() for k in range(3)]))
    assert max(np.linalg.norm(means[i] - means[j]) for i in range(3) for j in range(i)) < inside


def test_classes_that_differ_are_shown_apart(tmp_path):
    generator, labels = np.random.default_rng(3), np.arange(120) % 3
    points = generator.normal(size=(120, 500)) + 2 * generator.normal(size=(3, 500))[labels]
    found = drawn(tmp_path / "e.npz", points, labels, 3)
    away = np.linalg.norm(found["points"][:, None] - found["means"], axis=2)
    assert (away.argmin(1) == found["label"]).all()
