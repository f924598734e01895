"""A plane in which all that an attacker can reach is computed on a grid: three Gaussians and a detector."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustfg.attacks import (
    APGD,
    L1,
    L2,
    Accepted,
    FeatureBank,
    GradientAttack,
    Linf,
    ScoreOf,
    WrongAndAccepted,
    black_box,
    detector_graph,
    white_box,
)
from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.detectors.base import Detector
from robustfg.detectors.watched import Watched

EPSILON, TAU, LOWEST = 0.12, 0.12**2, 0.06**2
SIDE = 161
SPACING = 2 * EPSILON / (SIDE - 1)


class Plane(nn.Module):
    """Two pixels, a linear embedding, and logits -D_k / 2 of the squared distances to three centres."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.3], [-0.2, 1.1]], dtype=torch.float64))
        pixels = torch.tensor([[0.3, 0.5], [0.5, 0.55], [0.65, 0.3]], dtype=torch.float64)
        self.centres = nn.Parameter(pixels @ self.weight.detach().T)

    def forward(self, image):
        feature = image.flatten(1) @ self.weight.T
        return Output(logits=-(feature[:, None] - self.centres).square().sum(2) / 2, embedding=feature)


class Far(Detector):
    """min_k D_k."""

    def score(self, output, views=()):
        return -2 * output.logits.amax(1)


class FarFromMean(Detector):
    """A detector apart from the classifier: the squared distance to the mean of the first two centres."""

    def __init__(self, centres):
        super().__init__()
        self.register_buffer("mean", centres[:2].detach().mean(0))

    def score(self, output, views=()):
        return (output.embedding - self.mean).square().sum(1)


def watched(kind=Far, **options):
    plane = Plane()
    return Watched(plane, {"far": kind(**options), "apart": FarFromMean(plane.centres)})


def samples(count=40):
    """Images of class 0, all classified rightly."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(4 * count, 1, 1, 2, generator=generator, dtype=torch.float64) * 0.06
    clean = torch.tensor([0.3, 0.5]).double() + spread
    with torch.no_grad():
        clean = clean[Plane()(clean).logits.argmax(1) == 0][:count]
    return clean, torch.zeros(len(clean), dtype=torch.int64)


def least_on_grid(clean, detector="far"):
    """Of every sample, the least score of a wrong point within reach on the grid; infinite where none is wrong."""
    step = torch.linspace(-EPSILON, EPSILON, SIDE, dtype=torch.float64)
    offsets = torch.cartesian_prod(step, step).view(-1, 1, 1, 2)
    found = []
    with torch.no_grad():
        for image in clean:
            output = watched()(image + offsets)
            wrong = output.logits.argmax(1) != 0
            found.append(output.scores[detector].masked_fill(~wrong, torch.inf).min())
    return torch.stack(found)


def suite(model, detector="far", threat=None, **options):
    threat = threat or Linf(epsilon=EPSILON)
    clean, label = samples(8)
    other = model.classifier.centres.detach() @ torch.linalg.inv(model.classifier.weight.detach()).T
    bank = FeatureBank.of(model, torch.cat([clean, other.view(-1, 1, 1, 2)]), torch.cat([label, torch.arange(3)]))
    settings = {
        "tau": TAU, "lowest": LOWEST, "scale": TAU, "distances": detector == "far", "steps": 40, "bank": bank,
    }  # fmt: skip
    return white_box(detector, threat=threat, **(settings | options))


def least(attack, model, clean, label):
    return list(attack.attempts(model, clean, label))[-1].least


CLEAN, LABEL = samples()
GRID = {detector: least_on_grid(CLEAN, detector) for detector in ("far", "apart")}


def test_the_grid_divides_the_samples():
    for found in GRID.values():
        for tau in (LOWEST, TAU):
            assert 3 <= (found <= tau).sum() <= len(CLEAN) - 3


@pytest.mark.parametrize("detector", ["far", "apart"])
@pytest.mark.parametrize("tau", [TAU, LOWEST])
def test_the_max_form_finds_exactly_the_samples_that_the_grid_says(detector, tau):
    """A step between two points of the grid changes a score by less than 3 * sqrt(score) * spacing + spacing²."""
    attack = suite(watched(), detector, tau=tau, lowest=tau)[f"white_box/{detector}/max_form"]
    attempt = list(attack.attempts(watched(), CLEAN, LABEL))[-1]
    slack = 3 * tau**0.5 * SPACING
    possible, impossible = GRID[detector] <= tau, GRID[detector] > tau + slack
    assert (possible | impossible).sum() >= len(CLEAN) - 2
    assert torch.equal(attempt.margin[possible | impossible] < 0, possible[possible | impossible])
    answer = watched()(attempt.image)
    won = (answer.logits.argmax(1) != 0) & (answer.scores[detector] <= tau)
    assert torch.equal(won, attempt.margin < 0)


@pytest.mark.parametrize("detector", ["far", "apart"])
def test_one_run_of_the_union_answers_for_every_threshold(detector):
    """The least score among wrong answers is as low as on the grid wherever that is above the lowest threshold."""
    model = watched()
    union = torch.stack([least(attack, model, CLEAN, LABEL) for attack in suite(model, detector).values()]).amin(0)
    grid = GRID[detector]
    assert torch.equal(union.isfinite(), grid.isfinite())
    low = grid <= LOWEST
    assert (union[low] <= LOWEST).all()
    rest = grid.isfinite() & ~low
    assert (union[rest] <= grid[rest] * 1.001).all()
    assert (union[rest] >= grid[rest] - 3 * grid[rest].sqrt() * SPACING).all()


def weaker(detector):
    threat = Linf(epsilon=EPSILON)
    ignorant = GradientAttack(threat=threat, steps=40, watch=ScoreOf(detector))
    box = black_box(
        detector, threat=threat, tau=TAU, scale=TAU, lowest=LOWEST, queries=300, surrogates={"twin": Plane()}
    )
    return {"ignorant": ignorant, "last iterate": replace(ignorant, last_iterate=True), **box}


@pytest.mark.parametrize("detector", ["far", "apart"])
def test_the_adaptive_union_finds_whomever_a_weaker_attack_finds_at_every_threshold(detector):
    model = watched()
    union = torch.stack([least(attack, model, CLEAN, LABEL) for attack in suite(model, detector).values()]).amin(0)
    fewer = 0
    for name, attack in weaker(detector).items():
        found = least(attack, model, CLEAN, LABEL)
        for tau in torch.linspace(LOWEST, 2 * TAU, 20).tolist():
            assert ((union <= tau) | (found > tau)).all(), name
            fewer += int((union <= tau).sum() > (found <= tau).sum())
    assert fewer > 20


def test_every_attack_of_the_suite_finds_some_and_differs_from_none_by_name():
    model = watched()
    attacks = suite(model)
    assert set(attacks) == {
        f"white_box/far/{name}"
        for name in (
            "max_form", "max_form_lowest", "targeted", "selective", "orthogonal", "lagrangian", "features",
        )
    }  # fmt: skip
    for name, attack in attacks.items():
        assert attack.name == name
        assert attack.decision == WrongAndAccepted(score=ScoreOf("far"), tau=LOWEST, scale=TAU)
        assert attack.watch == ScoreOf("far")
        found = least(attack, model, CLEAN, LABEL) <= TAU
        assert found.sum() >= 0.7 * (GRID["far"] <= TAU).sum(), name


@pytest.mark.parametrize("norm", [L2, L1])
def test_the_suite_keeps_to_other_norms(norm):
    attacks = suite(watched(), threat=norm(epsilon=EPSILON), steps=10)
    assert ("white_box/far/orthogonal" in attacks) == (norm is L2)
    for attack in attacks.values():
        image = attack(watched(), CLEAN, LABEL)
        assert (attack.threat.size(image - CLEAN) <= EPSILON + 1e-6).all()
        assert (least(attack, watched(), CLEAN, LABEL) <= TAU).any()


@pytest.mark.parametrize("parts", [1, 7])
def test_results_do_not_depend_on_the_batch(parts):
    model, index = watched(), torch.arange(len(CLEAN)) + 100
    box = black_box("far", threat=Linf(epsilon=EPSILON), tau=TAU, queries=40, surrogates={"twin": Plane()})
    for name, attack in (suite(model, steps=6) | box).items():
        whole = list(attack.attempts(model, CLEAN[:14], LABEL[:14], index[:14]))[-1]
        for rows in torch.arange(14).split(parts):
            part = list(attack.attempts(model, CLEAN[rows], LABEL[rows], index[rows]))[-1]
            assert torch.allclose(part.least, whole.least[rows], rtol=0, atol=1e-9), name
            assert torch.allclose(part.image, whole.image[rows], rtol=0, atol=1e-9), name


def test_a_bank_of_accepted_images_holds_the_first_of_each_class_that_are_right_and_accepted():
    model, generator = watched(), torch.Generator().manual_seed(5)
    image = torch.rand(200, 1, 1, 2, generator=generator, dtype=torch.float64)
    label = torch.randint(3, (200,), generator=generator)
    bank = FeatureBank.accepted(
        model, zip(image.split(33), label.split(33), strict=True), score=ScoreOf("far"), tau=4 * TAU, per_class=3
    )
    with torch.no_grad():
        output = model(image)
    expected, kept = [], {0: 0, 1: 0, 2: 0}
    for row in range(200):
        true = int(label[row])
        if int(output.logits[row].argmax()) == true and output.scores["far"][row] <= 4 * TAU and kept[true] < 3:
            kept[true] += 1
            expected.append(row)
    assert 4 < len(expected) < 10
    assert torch.allclose(bank.embedding, output.embedding[expected])
    assert torch.equal(bank.label, label[expected])


def test_without_accepted_images_of_two_classes_there_is_no_bank():
    with pytest.raises(UserError, match="bank: images of 1 classes"):
        FeatureBank.accepted(watched(), [(CLEAN, LABEL)], score=ScoreOf("far"), tau=TAU)


def test_an_unknown_image_is_pushed_to_be_accepted_whatever_its_class():
    """The nearest a far image can come is where its box is nearest to a centre, which the grid knows."""
    model = watched()
    unknown = CLEAN * 0.5 + torch.tensor([0.1, 0.55]).double()
    step = torch.linspace(-EPSILON, EPSILON, SIDE, dtype=torch.float64)
    offsets = torch.cartesian_prod(step, step).view(-1, 1, 1, 2)
    with torch.no_grad():
        grid = torch.stack([model(image + offsets).scores["far"].min() for image in unknown])
    tau = float(grid.median())
    goal = Accepted(score=ScoreOf("far"), tau=tau)
    for label in (LABEL, LABEL + 2):
        attack = APGD(threat=Linf(epsilon=EPSILON), steps=60, objective=goal, decision=goal)
        with torch.no_grad():
            scores = model(attack(model, unknown, label)).scores["far"]
        clear = (grid - tau).abs() > 3 * tau**0.5 * SPACING
        assert clear.sum() > 30
        assert torch.equal((scores <= tau)[clear], (grid <= tau)[clear])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 2 * TAU}, "lowest must be <= tau"),
        ({"tau": float("inf")}, "tau and lowest must be finite, got inf"),
        ({"tau": -1.0, "lowest": -2.0, "scale": None}, "scale must be > 0"),
    ],
)
def test_bad_thresholds_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        suite(watched(), **options)
    with pytest.raises(UserError, match=message):
        black_box("far", threat=Linf(epsilon=0.1), **({"tau": TAU} | options))


def test_a_detector_that_is_not_there_is_named():
    attack = white_box("mahalanobis", threat=Linf(epsilon=0.1), tau=TAU)["white_box/mahalanobis/max_form"]
    with pytest.raises(UserError, match="no detector 'mahalanobis'; it has apart, far"):
        attack(watched(), CLEAN, LABEL)
    with pytest.raises(UserError, match="none watches it"):
        attack(Plane(), CLEAN, LABEL)


# --- Planted gradient masks


class Cut(Far):
    """The score without its graph."""

    def score(self, output, views=()):
        return super().score(output).detach()


class Quantised(Far):
    """The score in steps of an eighth of the threshold, as a rounding detector tells it."""

    def score(self, output, views=()):
        return (super().score(output) / TAU * 8).round() * TAU / 8


class Reversed(Far):
    """The right score with a gradient of the other sign: non-zero, and of no use."""

    def score(self, output, views=()):
        right = super().score(output)
        return 2 * right.detach() - right


def test_a_detector_without_a_graph_is_seen_for_every_image():
    for kind, alive in {Far: True, Cut: False, Quantised: False, Reversed: True}.items():
        found = detector_graph(watched(kind), CLEAN, ["far", "apart"])
        assert found["far"].tolist() == [alive] * len(CLEAN), kind.__name__
        assert found["apart"].all()


def test_the_graph_of_a_detector_is_told_sample_by_sample():
    class Half(Far):
        def score(self, output, views=()):
            right = super().score(output)
            return torch.where(output.embedding[:, 0] > 0.46, right, right.detach())

    with torch.no_grad():
        expected = watched()(CLEAN).embedding[:, 0] > 0.46
    assert 0 < expected.sum() < len(CLEAN)
    assert torch.equal(detector_graph(watched(Half), CLEAN, ["far"])["far"], expected)


class Halves(nn.Module):
    """The class is read from the left half of an image, 1 where its mean is above 0.5; the feature is the right one."""

    def forward(self, image):
        left, right = (half.mean((1, 2, 3)) for half in image.chunk(2, dim=3))
        return Output(logits=torch.stack([0.5 - left, left - 0.5], 1), embedding=right[:, None])


def bright(feature):
    return feature[:, 0]


def cut(feature):
    return feature[:, 0].detach()


def in_part(feature):
    return 0.01 * feature[:, 0] + 0.99 * feature[:, 0].detach()


def quantised(feature):
    return (feature[:, 0] * 50).round() / 50


def reversed_gradient(feature):
    return 2 * feature[:, 0].detach() - feature[:, 0]


class Right(Detector):
    """How bright the right half is, with a mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def score(self, output, views=()):
        return self.mask(output.embedding)


@pytest.mark.parametrize(
    ("mask", "graph", "hides"),
    [(bright, 1, False), (in_part, 1, False), (cut, 0, True), (quantised, 0, True), (reversed_gradient, 1, True)],
)
def test_a_mask_shows_by_a_missing_graph_or_by_what_only_the_square_attack_finds(mask, graph, hides):
    """A score that is only scaled hides nothing from signs; a reversed gradient is seen by the square attack alone."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.45 + 0.04 * torch.rand(20, 1, 4, 8, generator=generator, dtype=torch.float64)
    label, options = torch.zeros(20, dtype=torch.int64), {"threat": Linf(epsilon=0.1), "tau": 0.42}
    model = Watched(Halves(), {"right": Right(mask)})
    assert detector_graph(model, clean, ["right"])["right"].tolist() == [bool(graph)] * 20
    by_gradient = white_box("right", steps=20, restarts=1, **options)["white_box/right/selective"]
    square = black_box("right", queries=400, **options)["black_box/right/square"]
    found = [int((least(attack, model, clean, label) <= 0.42).sum()) for attack in (by_gradient, square)]
    assert found[0] == (0 if hides else 20)
    assert found[1] >= 10  # of a rounded score it sees only every other step
