import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import Center, PrototypeConformity
from robustfg.losses.centers import Centers


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True), torch.tensor(
        [0, 1, 2, 3, 0]
    )


def naive_others(feature, label, centers):
    return torch.stack([
        torch.stack([((x - c) ** 2).sum() for k, c in enumerate(centers) if k != int(y)]).mean()
        for x, y in zip(feature, label, strict=True)
    ])  # fmt: skip


def test_distances_are_those_of_a_loop_over_the_classes(batch):
    centers = Centers(num_classes=4, dim=6).double()
    feature, label = batch[0].mean((2, 3)), batch[1]
    own = torch.stack([((x - centers.vectors[y]) ** 2).sum() for x, y in zip(feature, label, strict=True)])
    torch.testing.assert_close(centers.to_own(feature, label), own)
    torch.testing.assert_close(centers.to_others(feature, label), naive_others(feature, label, centers.vectors))
    between = naive_others(centers.vectors[label], label, centers.vectors)
    torch.testing.assert_close(centers.between(label), between)


def test_center_loss_is_its_formula_and_its_centres_gradient_does_not_know_the_weight(batch):
    torch.manual_seed(0)
    module = Center(channels=6, num_classes=4, weight=0.02).double()
    feature_map, label = batch
    output = module(feature_map)
    terms = module.loss(output, label)
    centers = module.centers.vectors
    pull = ((output.embedding - centers[label]) ** 2).sum(1).mean() / 2
    torch.testing.assert_close(terms["loss"], F.cross_entropy(output.logits, label) + 0.02 * pull)
    (found,) = torch.autograd.grad(terms["loss"], centers, retain_graph=True)
    (expected,) = torch.autograd.grad(pull, centers, retain_graph=True)
    torch.testing.assert_close(found, expected)
    (to_feature,) = torch.autograd.grad(terms["center"], output.embedding)
    torch.testing.assert_close(to_feature, (output.embedding - centers[label]) / len(label))


@pytest.mark.parametrize("between", [False, True])
def test_prototype_conformity_is_its_formula_at_both_depths(batch, between):
    torch.manual_seed(0)
    module = PrototypeConformity(channels=6, num_classes=4, hidden_dim=7, near=0.5, far=0.01, between_centers=between)
    module = module.double()
    feature_map, label = batch
    output = module(feature_map)
    pooled = feature_map.mean((2, 3))
    hidden = F.linear(pooled, module.hidden.weight, module.hidden.bias)
    logits = F.linear(hidden, module.classifier.weight, module.classifier.bias)
    near = far = 0.0
    for depth, feature in enumerate((pooled, hidden)):
        own, others = module.near[depth].vectors, module.far[depth].vectors
        near = near + ((feature - own[label]) ** 2).sum(1).mean()
        far = far + naive_others(feature, label, others).mean()
        far = far + (naive_others(others[label], label, others).mean() if between else 0)
    terms = module.loss(output, label)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(logits, label) + 0.5 * near - 0.01 * far)
    (found,) = torch.autograd.grad(terms["loss"], module.far[1].vectors, retain_graph=True)
    (expected,) = torch.autograd.grad(-far, module.far[1].vectors)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [Center, PrototypeConformity])
def test_groups_hold_every_parameter_once(make):
    module = make(channels=6, num_classes=4, embedding_dim=3)
    grouped = [id(parameter) for group in module.groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())


def test_weights_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="loss.weight"):
        Center(channels=6, num_classes=4, weight=0)
    with pytest.raises(UserError, match="loss.far"):
        PrototypeConformity(channels=6, num_classes=4, far=-1)


def test_abnormality_is_the_squared_distance_to_the_predicted_centre(batch):
    module = Center(channels=6, num_classes=4).double()
    output = module(batch[0])
    nearest = module.centers.vectors[output.logits.argmax(1)]
    torch.testing.assert_close(module.anomaly(output), ((output.embedding - nearest) ** 2).sum(1))
