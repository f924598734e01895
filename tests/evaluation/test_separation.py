import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from toy import row

from robustfg.evaluation import diagnosis, separation
from robustfg.evaluation.diagnosis import closeness_and_success, spearman
from robustfg.evaluation.records import CLEAN, table_of
from robustfg.evaluation.separation import Embeddings, separation_of
from robustfg.reporting.evidence import genus_rows


def distances_of(points, labels, num_classes, batches=3):
    embeddings = Embeddings()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for rows in order.chunk(batches):
        embeddings.add(torch.as_tensor(points)[rows], torch.as_tensor(labels)[rows], rows)
    return embeddings.distances(num_classes)


def test_two_classes_on_a_line_give_the_numbers_worked_out_by_hand():
    # centres 1 and 6; radii 1 and 2; the nearest strangers are 3 and 4 away; the third class has no sample
    found = separation_of(distances_of([[0.0], [2.0], [4.0], [8.0]], [0, 0, 1, 1], 3), ["a", "b", "c"], ["g", "g", "h"])
    assert found["classes"]["a"] == {
        "nearest": "b", "centre_distance": 5.0, "spread": 1.0, "radius": 1.0, "intruder": 3.0, "separation": 3.0
    }  # fmt: skip
    assert found["classes"]["b"] == {
        "nearest": "a", "centre_distance": 5.0, "spread": 2.0, "radius": 2.0, "intruder": 4.0, "separation": 2.0
    }  # fmt: skip
    assert set(found["classes"]["c"].values()) == {None}
    assert {key: found[key] for key in ("separated", "n", "smallest", "median")} == {
        "separated": 2, "n": 2, "smallest": 2.0, "median": 2.5
    }  # fmt: skip
    assert found["groups"]["g"]["nearest_inside"] == 2
    assert found["groups"]["g"]["expected_nearest_inside"] == 2.0  # there is no other class with samples
    assert found["groups"]["h"]["n"] == found["groups"]["h"]["expected_nearest_inside"] == 0


def test_the_page_tells_the_classes_nearest_inside_their_genus_and_how_many_chance_would_give():
    # g holds 0, 1 and 9, h holds 10; of g's three classes each has two of its three others inside
    points, labels = [[0.0], [1.0], [9.0], [10.0]], [0, 1, 2, 3]
    found = separation_of(distances_of(points, labels, 4, batches=1), list("abcd"), ["g", "g", "g", "h"])
    assert {name: row[-1] for name, *row in genus_rows({"separation": found})} == {
        "g": "2 (2.0 by chance)", "h": "0 (0.0 by chance)",
    }  # fmt: skip


def test_a_class_of_one_sample_has_no_spread():
    found = separation_of(distances_of([[0.0], [3.0], [4.0]], [0, 1, 1], 2), ["a", "b"], None)
    assert found["classes"]["a"]["spread"] is found["classes"]["a"]["separation"] is None
    assert found["classes"]["b"]["separation"] == 3.5 / 0.5
    assert "groups" not in found


def test_distances_equal_a_naive_recomputation(monkeypatch):
    monkeypatch.setattr(separation, "BLOCK", 7)
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 5
    points = torch.randn(60, 9, generator=generator) + 50 + labels[:, None]
    found = distances_of(points, labels, 5)
    centres = [points[labels == k].double().mean(0) for k in range(5)]
    table = found.per_class()
    assert found.index.tolist() == list(range(60))
    for i in range(60):
        away = {k: float((points[i].double() - centres[k]).norm()) for k in range(5)}
        own = away.pop(int(labels[i]))
        assert found.own[i] == pytest.approx(own, rel=1e-9)
        assert found.foreign[i] == pytest.approx(min(away.values()), rel=1e-9)
    for k in range(5):
        inside = (points[labels == k].double() - centres[k]).norm(dim=1)
        outside = (points[labels != k].double() - centres[k]).norm(dim=1)
        between = {j: float((centres[k] - centres[j]).norm()) for j in range(5) if j != k}
        assert table["nearest"][k] == min(between, key=between.get)
        assert table["centre_distance"][k] == pytest.approx(min(between.values()))
        assert table["spread"][k] == pytest.approx(float(inside.square().mean().sqrt()))
        assert table["separation"][k] == pytest.approx(float(outside.min() / inside.max()))


def test_several_processes_find_what_one_does(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    labels, points = torch.arange(23) % 4, torch.randn(23, 6, generator=generator)
    one = distances_of(points, labels, 4)
    ranks = [Embeddings() for _ in range(3)]
    for rank, embeddings in enumerate(ranks):
        rows = torch.arange(rank, 23, 3)
        embeddings.add(points[rows], labels[rows], rows)
    exchanged, waiting = [], SimpleNamespace(round=0)

    def collect(value):  # every rank in turn, up to the exchange that is still missing
        if waiting.round < len(exchanged):
            waiting.round += 1
            return exchanged[waiting.round - 1]
        raise LookupError(value)

    monkeypatch.setattr(separation, "gathered", collect)
    for _ in range(2):
        told = []
        for embeddings in ranks:
            waiting.round = 0
            with pytest.raises(LookupError) as stopped:
                embeddings.distances(4)
            told.append(stopped.value.args[0])
        exchanged.append(told)
    for embeddings in ranks:
        waiting.round = 0
        several = embeddings.distances(4)
        for name in ("index", "label", "own", "foreign", "intruder", "between"):
            assert np.allclose(getattr(several, name), getattr(one, name), rtol=1e-12, atol=1e-12), name


def test_spearman_is_scipys():
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 4, 50).astype(float), generator.normal(size=50)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(one, np.ones(50)) is None


def diagnosed(success, to=None, classes=8, per_class=12):
    """Classes along a line, the gaps growing; ``success(class)`` is the share of its samples that are fooled."""
    labels = np.arange(classes * per_class) % classes
    places = np.cumsum(np.arange(classes) + 1.0)
    points = torch.tensor(places[labels] + 0.01 * np.arange(len(labels)), dtype=torch.float32)[:, None]
    rows = []
    for i, y in enumerate(labels.tolist()):
        fooled = (i // classes) < success(y) * per_class
        other = (to or (lambda y: y - 1 if y else 1))(y)
        rows.append(row(i, CLEAN, 0, True, label=y, prediction=y))
        rows.append(row(i, "a", 0, not fooled, label=y, prediction=other if fooled else y))
    return closeness_and_success(table_of(rows), ["a"], distances_of(points, labels, classes))


def test_success_among_close_classes_is_a_strong_correlation():
    found = diagnosed(lambda y: 1 - y / 8)
    assert found["samples"]["n"] == 96
    assert found["samples"]["rho"] > 0.4
    assert found["samples"]["ci95"][0] > 0.1
    assert found["pairs"]["n"] == 56
    assert found["pairs"]["rho"] > 0.3
    assert found["pairs"]["p"] < 0.01


def test_success_among_far_classes_is_a_negative_one():
    found = diagnosed(lambda y: y / 8, to=lambda y: 7 if y < 4 else 0)
    assert found["samples"]["ci95"][1] < 0
    assert found["pairs"]["rho"] < 0
    assert found["pairs"]["p"] > 0.9


def test_without_variation_there_is_no_correlation():
    assert diagnosed(lambda y: 1)["samples"] == {"rho": None, "ci95": None, "n": 96}
    assert diagnosed(lambda y: 0)["pairs"] == {"rho": None, "p": None, "n": 56}


def test_both_correlations_equal_a_naive_recomputation():
    generator = np.random.default_rng(4)
    labels = np.repeat(np.arange(5), (3, 9, 5, 12, 7))
    points = torch.as_tensor(generator.normal(size=(36, 3)), dtype=torch.float32) + torch.as_tensor(labels)[:, None]
    right, fooled = generator.random(36) < 0.8, generator.random(36) < 0.6
    to = (labels + generator.integers(1, 3, 36)) % 5
    rows = []
    for i, y in enumerate(labels.tolist()):
        reached = int(to[i]) if fooled[i] or not right[i] else y
        rows.append(row(i, CLEAN, 0, bool(right[i]), label=y, prediction=y if right[i] else int(to[i])))
        rows.append(row(i, "a", 0, reached == y, label=y, prediction=reached))
    distances = distances_of(points, labels, 5)
    found = closeness_and_success(table_of(rows), ["a"], distances)
    chosen = [i for i in range(36) if right[i]]
    naive = spearmanr([-distances.foreign[i] for i in chosen], [fooled[i] for i in chosen]).statistic
    assert found["samples"]["rho"] == pytest.approx(naive)
    near, often = [], []
    for one, other in itertools.permutations(range(5), 2):
        attacked = [i for i in chosen if labels[i] == one]
        near.append(-distances.between[one, other])
        often.append(np.mean([fooled[i] and to[i] == other for i in attacked]))
    assert found["pairs"]["rho"] == pytest.approx(spearmanr(near, often).statistic)


def test_the_permutation_p_value_is_that_of_all_permutations(monkeypatch):
    monkeypatch.setattr(diagnosis, "DRAWS", 9999)
    generator = np.random.default_rng(3)
    points = generator.normal(size=(5, 2))
    near = -np.linalg.norm(points[:, None] - points, axis=2)
    often, apart = near + generator.normal(size=(5, 5)) * 3, ~np.eye(5, dtype=bool)
    every = [
        spearmanr(near[np.ix_(order, order)][apart], often[apart]).statistic
        for order in map(list, itertools.permutations(range(5)))
    ]
    found = diagnosis._over_pairs(near, often)
    assert found["rho"] == pytest.approx(every[0])
    assert found["p"] == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-12), abs=0.01)


def test_the_p_value_is_that_of_whole_tables_permuted_in_the_same_way():
    generator = np.random.default_rng(5)
    for classes in (7, 30):
        near, often = generator.normal(size=(2, classes, classes))
        often = often.round() * (generator.random((classes, classes)) < 0.3)  # most pairs are never confused
        apart, draws, count = ~np.eye(classes, dtype=bool), np.random.default_rng(0), 0
        rho = spearmanr(near[apart], often[apart]).statistic
        for _ in range(diagnosis.DRAWS):
            order = draws.permutation(classes)
            count += spearmanr(near[np.ix_(order, order)][apart], often[apart]).statistic >= rho - 1e-9 * abs(rho)
        assert diagnosis._over_pairs(near, often)["p"] == pytest.approx((count + 1) / (diagnosis.DRAWS + 1))
