"""Unknown images under a detector whose score is linear in the image: all that can be reached is known."""

import copy

import numpy as np
import pytest
import torch
from shards import on_ranks
from torch import nn

from robustfg.attacks import APGD, Linf
from robustfg.attacks.acceptance import ScoreOf
from robustfg.attacks.joint import Accepted
from robustfg.detectors import Detector, Watched
from robustfg.evaluation import unknown
from robustfg.evaluation.open_set import accepted_at, ranking
from robustfg.evaluation.unknown import Known, measure_unknown, pushed, unknown_block
from robustfg.types import Batch, Output

EPSILON = 0.02


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 3)

    def forward(self, image):
        return Output(logits=self.linear(image.flatten(1)), embedding=image.flatten(1))


class Plane(Detector):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def score(self, output, views=()):
        return output.embedding @ self.weight


def watched():
    torch.manual_seed(0)
    model = Watched(Flat(), {"one": Plane(torch.randn(48)), "other": Plane(torch.randn(48))})
    return model.double().eval()


def images(count=23):
    generator = torch.Generator().manual_seed(1)
    return 0.3 + 0.4 * torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)


def attack(tau, detector="one"):
    climb = APGD(threat=Linf(epsilon=EPSILON), steps=10, random_start=False)
    return pushed(climb, Accepted(score=ScoreOf(detector), tau=tau, scale=1.0), detector)


def batches(rows, size=5):
    pixels = images()
    return [Batch(pixels[part], torch.full_like(part, 999), part) for part in torch.as_tensor(rows).split(size)]


def test_the_clean_score_and_the_least_one_that_can_be_reached_are_found():
    model = watched()
    found = measure_unknown(model, batches(torch.arange(23).flip(0)), {"one": attack(-1e9)})
    assert found.index.tolist() == list(range(23))
    with torch.no_grad():
        output = model(images())
    for name in ("one", "other"):
        assert np.allclose(found.clean[name], output.scores[name], atol=1e-12)
    lowest = output.scores["one"] - EPSILON * model.detectors["one"].weight.abs().sum()
    assert np.allclose(found.least["one"], lowest, atol=1e-9)
    assert list(found.least) == ["one"]
    assert (found.prediction == output.logits.argmax(1).numpy()).all()


def test_the_search_ends_where_the_image_is_accepted_and_never_above_the_clean_score():
    model = watched()
    with torch.no_grad():
        clean = model(images()).scores["one"]
    reach = float(EPSILON * model.detectors["one"].weight.abs().sum())
    tau = float(clean.median()) - reach / 2
    found = measure_unknown(model, batches(range(23)), {"one": attack(tau)})
    can = clean.numpy() - reach <= tau
    assert 0 < can.sum() < 23
    assert ((found.least["one"] <= tau) == can).all()
    assert (found.least["one"] <= found.clean["one"]).all()
    already = clean.numpy() <= tau
    assert np.allclose(found.least["one"][already], clean.numpy()[already])


def test_three_processes_with_uneven_shares_find_what_one_does(monkeypatch):
    one = measure_unknown(watched(), batches(range(23)), {"one": attack(-1e9)})
    models = [copy.deepcopy(watched()) for _ in range(3)]

    def work(rank):
        return measure_unknown(models[rank], batches(range(rank, 23, 3), size=3), {"one": attack(-1e9)})

    for several in on_ranks(monkeypatch, [unknown], 3, work):
        assert several.table("far").schema == one.table("far").schema
        assert several.index.tolist() == one.index.tolist()
        assert several.prediction.tolist() == one.prediction.tolist()
        for name in ("clean", "least"):
            ours, theirs = getattr(one, name), getattr(several, name)
            assert ours.keys() == theirs.keys()
            for detector in ours:
                assert np.allclose(ours[detector], theirs[detector], atol=1e-12)


def test_an_image_that_was_measured_twice_is_refused():
    with pytest.raises(RuntimeError, match="23 records for 22 images"):
        measure_unknown(watched(), batches([*range(22), 0]), {})


def test_the_block_holds_the_figures_of_clean_and_attacked_scores():
    generator = np.random.default_rng(2)
    found = measure_unknown(watched(), batches(range(23)), {"one": attack(-1e9)})
    known = {
        name: Known(score=generator.normal(float(np.median(found.clean[name])) - 1, 1, 40),
                    correct=generator.random(40) < 0.8)
        for name in ("one", "other")
    }  # fmt: skip
    thresholds = {name: {0.05: float(np.quantile(known[name].score, 0.95))} for name in known}
    block = unknown_block(found, known, thresholds)
    assert block["n"] == 23
    assert list(block["detectors"]["other"]) == ["clean"]
    one, score, correct = block["detectors"]["one"], known["one"].score, known["one"].correct
    for state, scores in (("clean", found.clean["one"]), ("attacked", found.least["one"])):
        assert one[state] == ranking(score, correct, scores) | {
            "accepted": accepted_at(score, correct, scores, thresholds["one"])
        }
    assert one["attacked"]["auroc"] < one["clean"]["auroc"]
    counts = [one[state]["accepted"][0]["unknown_accepted"]["count"] for state in ("clean", "attacked")]
    assert counts[0] < counts[1]


def test_the_table_has_a_row_for_every_image():
    found = measure_unknown(watched(), batches(range(23)), {"one": attack(-1e9)})
    rows = found.table("far").to_pylist()
    assert len(rows) == 23
    assert rows[7] == {
        "unknown": "far", "index": 7, "prediction": int(found.prediction[7]), "score/one": found.clean["one"][7],
        "score/other": found.clean["other"][7], "least/one": found.least["one"][7],
    }  # fmt: skip
