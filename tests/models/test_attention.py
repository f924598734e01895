import pytest
import torch
from torch import nn

from robustfg.models.attention import AttentionalPooling, attention_map, is_dead


def pooling(**options):
    torch.manual_seed(0)
    return AttentionalPooling(
        channels=6, num_classes=4, **({"dropout": 0.5, "dropout_in_maps": False} | options)
    ).double()


def features(seed=0):
    return torch.randn(3, 6, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(module, feature_map, shown):
    """Logits and products by loops over samples, classes and positions; the class maps see what is ``shown``."""
    rectified = feature_map.clamp_min(0)
    products = torch.zeros(len(feature_map), 4, *feature_map.shape[2:], dtype=torch.float64)
    for b, k, i, j in torch.cartesian_prod(*(torch.arange(size) for size in products.shape)).tolist():
        agnostic = (module.agnostic.weight[0, :, 0, 0] * rectified[b, :, i, j]).sum() + module.agnostic.bias[0]
        specific = (module.specific.weight[k, :, 0, 0] * shown[b, :, i, j]).sum() + module.specific.bias[k]
        products[b, k, i, j] = (agnostic * specific).detach()
    return products.mean((2, 3)), products


@pytest.mark.parametrize("dropout_in_maps", [False, True])
def test_logits_are_mean_products_of_the_two_maps(dropout_in_maps):
    module = pooling(dropout_in_maps=dropout_in_maps).eval()
    logits, maps = module(features())
    expected = written_out(module, features(), features().clamp_min(0))
    assert torch.allclose(logits, expected[0], atol=1e-12)
    assert torch.allclose(maps, expected[1], atol=1e-12)


@pytest.mark.parametrize("dropout_in_maps", [False, True])
def test_dropout_hides_features_from_the_class_maps_in_training(dropout_in_maps):
    module = pooling(dropout_in_maps=dropout_in_maps).train()
    torch.manual_seed(3)
    shown = nn.functional.dropout(features().clamp_min(0), 0.5)
    torch.manual_seed(3)
    logits, maps = module(features())
    hidden = written_out(module, features(), shown)
    assert torch.allclose(logits, hidden[0], atol=1e-12)
    clear = written_out(module, features(), features().clamp_min(0))
    assert torch.allclose(maps, (hidden if dropout_in_maps else clear)[1], atol=1e-12)


def test_the_logits_gradient_is_the_same_on_both_ways_to_compute_them():
    module = pooling(dropout=0.0)
    found = []
    for training in (True, False):
        leaf = features().requires_grad_()
        logits, _ = module.train(training)(leaf)
        found.append(torch.autograd.grad((logits * torch.arange(4)).sum(), [leaf, *module.parameters()]))
    assert all(torch.allclose(first, second, atol=1e-12) for first, second in zip(*found, strict=True))


def test_initial_weights_have_the_deviation_asked_for():
    module = AttentionalPooling(channels=500, num_classes=40, dropout=0.8, dropout_in_maps=False, std=1e-3)
    assert module.specific.weight.std().item() == pytest.approx(1e-3, rel=0.03)
    assert module.specific.bias.abs().sum() == module.agnostic.bias.abs().sum() == 0


def test_a_map_is_the_largest_positive_product_over_its_own_maximum():
    products = torch.tensor([[[[1.0, -2.0]], [[0.5, -1.0]]], [[[4.0, 2.0]], [[3.0, 8.0]]]])
    assert attention_map(products, 1e-6).tolist() == [[[[1.0, 0.0]]], [[[0.5, 1.0]]]]


def test_a_map_without_a_positive_product_is_zero_and_has_no_gradient():
    products = -torch.rand(2, 3, 2, 2)
    products.requires_grad_()
    found = attention_map(products, 1e-6)
    assert found.abs().sum() == 0
    assert torch.autograd.grad(found.sum(), products)[0].abs().sum() == 0


def test_without_epsilon_such_a_map_is_no_number_as_in_the_released_code():
    assert attention_map(-torch.rand(2, 3, 2, 2), 0.0).isnan().all()


def test_dead_maps_are_told_from_others():
    products = torch.stack([torch.rand(3, 4, 4) + 0.1, -torch.rand(3, 4, 4), 1e-9 * torch.rand(3, 4, 4)])
    assert is_dead(attention_map(products, 1e-6)).tolist() == [False, True, False]
    assert is_dead(attention_map(products, 0.0)).tolist() == [False, True, False]
    assert is_dead(torch.tensor([[0.1, torch.inf], [0.1, torch.nan], [0.0, -1.0], [1e-9, -1.0]])).tolist() == [
        True, True, True, False,
    ]  # fmt: skip
