import math

import pytest
import torch

from robustfg.core.errors import UserError
from robustfg.losses import GaussianMixture
from robustfg.losses.priors import Given, Learned

COUNT = torch.tensor([6, 0, 3])


def mixture(priors):
    torch.manual_seed(0)
    return GaussianMixture(channels=4, num_classes=3, priors=priors, margin=0.5).double()


def given(**sizes):
    return Given(**sizes, frequencies=[5, 1, 4])


def test_given_priors_are_bayes_rule():
    module, feature_map = mixture(given), torch.randn(6, 4, 1, 1, dtype=torch.float64)
    posterior = module(feature_map).logits.softmax(1)
    density = (-0.5 * torch.cdist(feature_map.flatten(1), module.means).square()).exp()
    joint = density * torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    assert torch.allclose(posterior, joint / joint.sum(1, keepdim=True), rtol=0, atol=1e-7)
    assert not list(module.priors.parameters())


def test_the_anomaly_is_the_least_of_distance_minus_twice_the_log_prior():
    module, feature_map = mixture(given), torch.randn(6, 4, 1, 1, dtype=torch.float64)
    distance = torch.cdist(feature_map.flatten(1), module.means).square()
    expected = (distance - 2 * torch.tensor([0.5, 0.1, 0.4]).log()).amin(1)
    assert torch.allclose(module.anomaly(module(feature_map)), expected, rtol=0, atol=1e-6)


def test_there_is_no_margin_on_the_prior():
    module, feature_map = mixture(given), torch.randn(3, 4, 1, 1, dtype=torch.float64)
    label = torch.tensor([0, 1, 2])
    found = module.loss(module(feature_map), label)["classification"]
    half = 0.5 * torch.cdist(feature_map.flatten(1), module.means).square()
    scaled = torch.where(torch.eye(3, dtype=torch.bool), 1.5 * half, half)
    joint = torch.tensor([0.5, 0.1, 0.4]).log() - scaled
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(joint, label).item(), abs=1e-6)


def test_learned_priors_begin_uniform_and_learn_the_frequencies():
    module = mixture(Learned)
    feature_map, label = torch.zeros(10, 4, 1, 1, dtype=torch.float64), torch.tensor([0] * 5 + [1] + [2] * 4)
    module.means.data.zero_()  # so that nothing but the priors can tell the classes apart
    assert module.priors.log().tolist() == pytest.approx([-math.log(3)] * 3)
    optimizer = torch.optim.SGD(module.groups()["priors"], lr=1.0)
    for _ in range(500):
        optimizer.zero_grad()
        module.loss(module(feature_map), label)["classification"].backward()
        optimizer.step()
    assert module.priors.log().exp().tolist() == pytest.approx([0.5, 0.1, 0.4], abs=1e-6)


def test_counted_classes_become_the_priors_where_none_were_given():
    for priors in (Given(num_classes=3), Learned(num_classes=3)):
        priors.become(COUNT)
        assert priors.log().exp().tolist() == pytest.approx([0.6, 0.1, 0.3], abs=1e-6)  # an absent class counts as one
    fixed = Given(num_classes=3, frequencies=[1, 1, 2])
    fixed.become(COUNT)
    assert fixed.log().exp().tolist() == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.parametrize("frequencies", [[1, 1], [1, 0, 1], [1, -1, 1]])
def test_impossible_frequencies_are_refused_by_name(frequencies):
    with pytest.raises(UserError, match=r"loss.priors.frequencies must be 3 numbers > 0"):
        Given(num_classes=3, frequencies=frequencies)
