"""What the page says about the feature space."""

import itertools

import numpy as np
import pytest
import torch
from test_gaussianity import Claiming, classes, embeddings_of

from robustfg.evaluation.embedding import embedding_of
from robustfg.reporting.embedding import claimed, embedding_lines, normality, symmetry
from robustfg.reporting.embedding_figures import latent_picture, laws_picture, reliability_picture, shown_axes
from robustfg.reporting.marks import marks


def found(path, d=9, count=4, each=24):
    points, labels = classes(np.random.default_rng(0), count, each, d)
    loss = Claiming(torch.zeros(count, d), 1)
    return embedding_of(embeddings_of(points, labels), "abcd", loss=loss, device=torch.device("cpu"), picture=path)


def test_sentences_give_the_numbers_and_the_reduction(tmp_path):
    block = found(tmp_path / "e.npz")
    told = normality(block)
    assert f"by skewness {block['gaussian']['skewness']['rejected']} of 4 classes" in told
    assert "(0.2 by chance)" in told
    assert "along the 6 widest of 9 directions within classes" in told
    assert f"chi-square by {block['gaussian']['distances']['ks']:.3f}" in told
    assert "Not tested" not in told
    assert f"{block['symmetry']['smallest_to_largest']:.2f}" in symmetry(block)
    assert f"{block['claimed']['mean_ratio']:.3g} times as large as claimed" in claimed(block)
    assert embedding_lines({"embedding": block}) == [told, symmetry(block), claimed(block)]


def test_what_cannot_be_told_is_left_out():
    empty = {"gaussian": None, "symmetry": None, "claimed": None}
    assert embedding_lines({"embedding": empty}) == [
        "No class can be tested for being Gaussian: none has 20 samples that differ."
    ]
    assert embedding_lines({}) == []
    assert laws_picture({}) is reliability_picture({}) is None


def test_the_picture_is_drawn_for_few_and_for_many_classes(tmp_path):
    block = found(tmp_path / "e.npz", d=2)
    assert shown_axes(tmp_path / "e.npz") == "embedding"
    assert latent_picture(tmp_path / "e.npz", "abcd").startswith("data:image/png")
    assert latent_picture(tmp_path / "none.npz", "abcd") is shown_axes(tmp_path / "none.npz") is None
    assert laws_picture({"embedding": block}).startswith("data:image/svg")
    assert reliability_picture({"embedding": block}) is None
    points, labels = classes(np.random.default_rng(0), 30, 4, 3)
    block = embedding_of(
        embeddings_of(points, labels),
        range(31),
        loss=None,
        device=torch.device("cpu"),
        picture=tmp_path / "many.npz",
    )
    assert block["gaussian"] is block["claimed"] is None
    assert latent_picture(tmp_path / "many.npz", [str(k) for k in range(31)]).startswith("data:image/png")


def test_what_chance_explains_is_unknown_with_one_sample_a_class():
    told = {"variation": 0.55, "smallest_to_largest": 0.25}
    assert "sampling alone would give 3.1 % of the squared distances" in symmetry({"symmetry": told | {"noise": 0.031}})
    assert "cannot be told" in symmetry({"symmetry": told | {"noise": None}})
    assert " 0.0 %" not in symmetry({"symmetry": told | {"noise": None}})


@pytest.mark.parametrize(
    ("ratio", "meaning"),
    [(0.005, "much nearer to their means"), (0.3, "lie nearer to their"), (40.0, "much farther from their means")],
)
def test_a_ratio_far_from_one_says_what_it_means(ratio, meaning):
    law = {"dimensions": 3, "ks": 1.0, "ks_chance": 0.1, "mean_ratio": ratio}
    assert meaning in claimed({"claimed": law})
    assert "features lie" not in claimed({"claimed": law | {"mean_ratio": 1.1}})


def test_genera_go_by_colour_and_classes_within_them_by_shape():
    genera = ["a", "a", "b", "b", "b", "c"]
    looks = marks(6, genera)
    assert len(set(looks)) == 6
    for one, other in itertools.combinations(range(6), 2):
        assert (looks[one].color == looks[other].color) == (genera[one] == genera[other])
    for count, groups in ((20, None), (16, list("abcdefgh") * 2), (30, list("abcdefghijklmno") * 2)):
        assert len(set(marks(count, groups))) == count
