import math

import pytest
import torch

from robustfg.classifier import Classifier
from robustfg.core.types import Output
from robustfg.losses import (
    ArcFace,
    CosFace,
    GaussianMixture,
    LargeMarginSoftmax,
    MaxMahalanobisCenter,
    MaxMahalanobisLDA,
    Softmax,
)
from robustfg.losses.explain import class_activation, nearness

LINEAR = [Softmax, GaussianMixture, LargeMarginSoftmax, MaxMahalanobisCenter, MaxMahalanobisLDA]


@pytest.mark.parametrize("loss", LINEAR)
@pytest.mark.parametrize("dim", [None, 7])
def test_before_its_negative_part_is_cut_the_mean_of_the_map_is_the_logits_lead_over_the_average(
    loss, dim, monkeypatch
):
    torch.manual_seed(0)
    head = loss(channels=5, num_classes=4, embedding_dim=dim).double()
    features = torch.randn(6, 5, 3, 2, dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "clamp_min", lambda self, low: self)
    found = head.evidence(features, head(features))["cam"].mean((1, 2))
    monkeypatch.undo()

    def lead(features):
        logits = head(features).logits
        return logits.amax(1) - logits.mean(1)

    nothing = torch.zeros_like(features)  # the map leaves out what does not depend on the position
    predicted = head(features).logits.argmax(1)
    at_zero = head(nothing).logits
    constant = at_zero.gather(1, predicted[:, None])[:, 0] - at_zero.mean(1)
    assert torch.allclose(found, lead(features) - constant)


@pytest.mark.parametrize("loss", [CosFace, ArcFace])
def test_the_map_of_a_cosine_head_is_the_lead_of_its_cosines_times_the_features_length(loss, monkeypatch):
    torch.manual_seed(0)
    head = loss(channels=5, num_classes=4).double()
    features = torch.randn(6, 5, 3, 2, dtype=torch.float64)
    output = head(features)
    monkeypatch.setattr(torch.Tensor, "clamp_min", lambda self, low: self)
    found = head.evidence(features, output)["cam"].mean((1, 2))
    monkeypatch.undo()
    cosine = output.logits / head.scale
    lead = cosine.amax(1) - cosine.mean(1)
    assert torch.allclose(found, lead * features.mean((2, 3)).norm(dim=1))


def test_the_map_is_never_negative_and_does_not_change_with_what_changes_no_decision():
    torch.manual_seed(0)
    features, weight = torch.randn(4, 6, 3, 3), torch.randn(5, 6)
    predicted = torch.tensor([0, 4, 2, 2])
    found = class_activation(features, weight, predicted)
    assert found.min() == 0 < found.max()
    assert torch.allclose(found, class_activation(features, weight + torch.randn(6), predicted), atol=1e-5)
    naive = ((weight[4] - weight.mean(0))[:, None, None] * features[1]).sum(0).clamp(min=0)
    assert torch.allclose(found[1], naive, atol=1e-5)


def test_nearness_is_the_predicted_classs_similarity():
    distance = torch.tensor([[[[0.0, 1.0]], [[3.0, 0.0]]]])
    found = nearness(distance, torch.tensor([1]))
    assert found[0, 0].tolist() == pytest.approx([math.log(4 / 3.0001), math.log(1e4)], rel=1e-5)


def test_maps_of_one_channel_and_the_closest_prototype_are_evidence():
    class Prototypes(Softmax):
        def forward(self, feature_map):
            distance = feature_map[:, :3].square()
            return Output(distance.mean((2, 3)), feature_map.mean((2, 3)),
                          maps={"attention": feature_map[:, :1], "class_distance": distance})  # fmt: skip

        evidence = Softmax.__mro__[1].evidence

    model = Classifier(backbone=torch.nn.Identity(), loss=Prototypes(channels=3, num_classes=3), num_classes=3)
    image = torch.rand(2, 3, 4, 4)
    output, maps = model.explain(image)
    assert set(maps) == {"attention", "prototype"}
    assert torch.equal(maps["attention"], image[:, 0])
    assert torch.equal(maps["prototype"], nearness(image.square(), output.logits.argmax(1)))
    assert torch.equal(output.logits, model(image).logits)
