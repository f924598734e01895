import pickle
from functools import cache

import pytest
import torch
from answers import CLASSES
from torch import nn
from toy import Convolutions

from robustfg.attacks import GradientAttack, Linf, Steepest
from robustfg.attacks.runtime.folding import folded
from robustfg.classifier import Classifier
from robustfg.cli.config import build
from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output
from robustfg.detectors import (
    Energy,
    FeatureSqueezing,
    KernelDensity,
    Likelihood,
    LocalIntrinsicDimensionality,
    Mahalanobis,
    MaxSoftmax,
    NearestNeighbours,
    PrototypeSimilarity,
    RelativeMahalanobis,
    Watched,
    fit,
)
from robustfg.losses import GaussianMixture, ProtoPNet

INNER = "layers.3"  # a batch norm, which the private copy lacks
DETECTORS = {
    "likelihood": Likelihood,
    "max_softmax": MaxSoftmax,
    "energy": Energy,
    "mahalanobis": Mahalanobis,
    "mahalanobis_layers": lambda: Mahalanobis(features=["embedding", INNER, "layers.4"]),
    "relative": lambda: RelativeMahalanobis(features=[INNER]),
    "kernel": KernelDensity,
    "neighbours": lambda: NearestNeighbours(neighbours=5),
    "lid": lambda: LocalIntrinsicDimensionality(features=[INNER, "embedding"], per_class=10, neighbours=8),
    "prototype": PrototypeSimilarity,
    "squeezing": FeatureSqueezing,
}


def pictures(count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % CLASSES
    bright = torch.rand(CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(9)) * 0.5
    noise = torch.rand(count, 3, 12, 12, generator=generator)
    return Batch((bright[label] + 0.5 * noise), label, torch.arange(count))


def classifier(head=GaussianMixture):
    torch.manual_seed(0)
    backbone = Convolutions()
    backbone(pictures().image)  # batch norm sees some images
    return Classifier(backbone=backbone, loss=head(channels=16, num_classes=CLASSES), num_classes=CLASSES).eval()


@cache
def watched():
    model = Watched(classifier(), {name: make() for name, make in DETECTORS.items()}).eval()
    batch = pictures()
    fit(model, [Batch(*(value[start : start + 20] for value in batch)) for start in range(0, 64, 20)])
    return model


def test_the_classifier_answers_as_ever_and_every_detector_adds_a_score():
    model, images = watched(), pictures(9, seed=1).image
    output = model(images)
    plain = model.classifier(images)
    assert torch.equal(output.logits, plain.logits)
    assert {name: score.shape for name, score in output.scores.items()} == dict.fromkeys(DETECTORS, (9,))
    assert model.layers == (INNER, "layers.4") == tuple(output.layers)
    for name, module in model.detectors.items():
        if not module.views:
            assert torch.equal(output.scores[name], module.score(model.answer(images)))


def test_feature_squeezing_is_the_largest_change_of_probabilities():
    model, images = watched(), pictures(9, seed=1).image
    plain = model.classifier(images).logits.softmax(1)
    views = [(images * 31).round() / 31, model.detectors["squeezing"].squeezers[1](images)]
    changes = [(plain - model.classifier(view).logits.softmax(1)).abs().sum(1) for view in views]
    torch.testing.assert_close(
        model(images).scores["squeezing"].sigmoid() * 2, torch.maximum(*changes), rtol=1e-4, atol=1e-7
    )


class Accepted:
    """Climbs against a detector's score; reached only at a score that is out of reach."""

    name = "accepted"

    def __init__(self, detector, tau):
        self.detector, self.tau = detector, tau

    def __call__(self, output, label):
        return self.tau - output.scores[self.detector]


@pytest.mark.parametrize("name", DETECTORS)
def test_an_attack_on_the_score_lowers_it(name):
    model, batch = watched(), pictures(16, seed=1)
    with torch.no_grad():
        before = model(batch.image).scores[name]
    goal = Accepted(name, -3 * float(before.abs().max()))
    attack = GradientAttack(
        name="pgd", threat=Linf(epsilon="8/255"), step=Steepest(size="eps/8"), steps=20, objective=goal, decision=goal
    )
    with torch.no_grad():
        after = model(attack(model, batch.image, batch.label, batch.index)).scores[name]
        noise = 8 / 255 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(0)).sign()
        by_chance = model((batch.image + noise).clamp(0, 1)).scores[name]
    assert (after <= before + 1e-5 * before.abs()).all()
    assert (before - after).mean() > 2 * (before - by_chance).mean().clamp_min(0)
    assert (before - after).mean() > 0.02 * before.std()


def test_the_private_copy_of_attacks_gives_the_same_scores_and_layers():
    images = pictures(6, seed=1).image
    detectors = {name: module for name, module in watched().detectors.items() if not module.views}
    model = Watched(watched().classifier, detectors).double().eval()
    _, copy = folded(model, images.double())
    try:
        own, theirs = model(images.double()), copy(images.double())
        for name, score in own.scores.items():
            torch.testing.assert_close(theirs.scores[name], score, rtol=1e-6, atol=1e-6)
        for name, layer in own.layers.items():
            torch.testing.assert_close(theirs.layers[name], layer, rtol=1e-6, atol=1e-6)
    finally:
        model.float()


def test_fitting_leaves_the_model_as_it_was_and_draws_nothing_for_those_who_learn_nothing():
    model = Watched(classifier().train(), {"mahalanobis": Mahalanobis()}).train()
    model.classifier.loss.eval()
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fit(model, [pictures()])
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.classifier.state_dict().items())

    def never():
        raise AssertionError
        yield

    fit(Watched(classifier(), {"energy": Energy()}), never())


def test_two_processes_fit_what_one_does():
    batch = pictures()
    halves = [Batch(*(value[part] for value in batch)) for part in (slice(0, 23), slice(23, None))]
    found = []
    fit(Watched(classifier(), {"m": Mahalanobis()}), [halves[0]], lambda finding: found.append(finding) or [finding])
    other = Watched(classifier(), {"m": Mahalanobis()})
    fit(other, [halves[1]], lambda finding: [found[0], finding])
    alone = Watched(classifier(), {"m": Mahalanobis()})
    fit(alone, [batch])
    torch.testing.assert_close(other(batch.image).scores["m"], alone(batch.image).scores["m"], rtol=1e-4, atol=1e-4)


def test_prototype_heads_are_watched_by_their_own_distances():
    model = Watched(classifier(ProtoPNet), {"prototype": PrototypeSimilarity()})
    output = model(pictures(5).image)
    expected = output.maps["class_distance"][torch.arange(5), output.logits.argmax(1)].flatten(1).amin(1)
    assert torch.equal(output.scores["prototype"], expected)


def test_a_watched_model_pickles():
    model = Watched(watched().classifier.backbone, {"energy": Energy()})
    assert list(pickle.loads(pickle.dumps(model)).detectors) == ["energy"]


def test_scores_are_not_computed_in_half_precision():
    class Told(nn.Module):
        def forward(self, image):
            embedding = image.flatten(1)[:, :16].bfloat16()
            return Output(logits=embedding[:, :CLASSES], embedding=embedding)

    model = Watched(Told(), {"mahalanobis": Mahalanobis(), "energy": Energy()})
    fit(model, [pictures()])
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pictures(4).image).scores
    whole = model(pictures(4).image).scores
    for name, score in half.items():
        assert score.dtype == torch.float32
        assert torch.equal(score, whole[name])


def test_a_name_with_a_dot_is_refused():
    with pytest.raises(UserError, match=r"detector: names must hold no dot, got a\.b"):
        Watched(classifier(), {"a.b": Energy()})


def test_nothing_to_squeeze_is_refused():
    with pytest.raises(UserError, match="nothing to squeeze"):
        build({"_target_": "robustfg.detectors.FeatureSqueezing", "bits": None, "window": None}, "detector.squeezing")
