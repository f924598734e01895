"""Unknown images under a detector whose score is linear in the image: all that can be reached is known."""

import numpy as np
import pytest
import torch
from torch import nn

from robustfg.attacks import APGD, Linf
from robustfg.attacks.objectives.acceptance import ScoreOf
from robustfg.attacks.objectives.joint import Accepted
from robustfg.core.types import Batch, Output
from robustfg.detectors import Detector, Watched
from robustfg.evaluation.open_set import accepted_at, ranking
from robustfg.evaluation.records import RecordStore
from robustfg.evaluation.unknown import Known, pushed, unknown_block
from robustfg.evaluation.unknown_record import attacked_rows, clean_rows, measure_unknown, unknown_scores

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


PRINTS = {clean_rows("far"): "1", attacked_rows("far", "one"): "2"}


@pytest.fixture
def measured(tmp_path):
    """Measures all images of the set "far" on as many processes as there are shares."""

    def work(attacks, shares=(range(23),), size=5):
        stores = [RecordStore(tmp_path, rank, PRINTS) for rank in range(len(shares))]
        for store, share in zip(stores, shares, strict=True):
            measure_unknown(watched(), batches(share, size), attacks, store, "far")
        rows = [row for store in stores for row in store.own_rows(len(shares))]
        return unknown_scores(rows, "far", 23, attacks)

    return work


def test_the_clean_score_and_the_least_one_that_can_be_reached_are_found(measured):
    model = watched()
    found = measured({"one": attack(-1e9)}, [torch.arange(23).flip(0)])
    assert found.index.tolist() == list(range(23))
    with torch.no_grad():
        output = model(images())
    for name in ("one", "other"):
        assert np.allclose(found.clean[name], output.scores[name], atol=1e-12)
    lowest = output.scores["one"] - EPSILON * model.detectors["one"].weight.abs().sum()
    assert np.allclose(found.least["one"], lowest, atol=1e-9)
    assert list(found.least) == ["one"]
    assert (found.prediction == output.logits.argmax(1).numpy()).all()


def test_the_search_ends_where_the_image_is_accepted_and_never_above_the_clean_score(measured):
    model = watched()
    with torch.no_grad():
        clean = model(images()).scores["one"]
    reach = float(EPSILON * model.detectors["one"].weight.abs().sum())
    tau = float(clean.median()) - reach / 2
    found = measured({"one": attack(tau)})
    can = clean.numpy() - reach <= tau
    assert 0 < can.sum() < 23
    assert ((found.least["one"] <= tau) == can).all()
    assert (found.least["one"] <= found.clean["one"]).all()
    already = clean.numpy() <= tau
    assert np.allclose(found.least["one"][already], clean.numpy()[already])


def test_three_processes_with_uneven_shares_find_what_one_does(measured, tmp_path):
    several = measured({"one": attack(-1e9)}, [range(rank, 23, 3) for rank in range(3)], size=3)
    for file in tmp_path.glob("unfinished-*"):
        file.unlink()
    one = measured({"one": attack(-1e9)})
    assert several.table("far").schema == one.table("far").schema
    assert several.index.tolist() == one.index.tolist()
    assert several.prediction.tolist() == one.prediction.tolist()
    for name in ("clean", "least"):
        ours, theirs = getattr(one, name), getattr(several, name)
        assert ours.keys() == theirs.keys()
        for detector in ours:
            assert np.allclose(ours[detector], theirs[detector], atol=1e-12)


def test_an_image_that_was_measured_twice_is_refused(measured):
    with pytest.raises(RuntimeError, match="far/clean: 24 records for 23 images"):
        measured({"one": attack(-1e9)}, [range(23), range(1)])


def test_an_image_that_was_not_attacked_is_refused(measured):
    assert not measured({}).least
    with pytest.raises(RuntimeError, match="far/accepted/one: 0 records for 23 images"):
        measured({"one": attack(-1e9)}, [torch.arange(0)])


def test_the_block_holds_the_figures_of_clean_and_attacked_scores(measured):
    generator = np.random.default_rng(2)
    found = measured({"one": attack(-1e9)})
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


def test_the_table_has_a_row_for_every_image(measured):
    found = measured({"one": attack(-1e9)})
    rows = found.table("far").to_pylist()
    assert len(rows) == 23
    assert rows[7] == {
        "unknown": "far", "index": 7, "prediction": int(found.prediction[7]), "score/one": found.clean["one"][7],
        "score/other": found.clean["other"][7], "least/one": found.least["one"][7],
    }  # fmt: skip
