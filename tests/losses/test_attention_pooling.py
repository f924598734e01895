import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import AttentionPooling

LABEL = torch.tensor([0, 2, 1])


def features():
    return torch.randn(3, 6, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_logits_are_rank_one_bilinear_pooling_and_the_loss_their_cross_entropy():
    module = AttentionPooling(channels=6, num_classes=4).double().eval()
    output = module(features())
    seen = F.pad(features().clamp_min(0).flatten(2), (0, 0, 0, 1), value=1.0)  # the biases are weights of a 1
    bottom = torch.cat([module.attention.agnostic.weight.flatten(1), module.attention.agnostic.bias[:, None]], 1)
    top = torch.cat([module.attention.specific.weight.flatten(1), module.attention.specific.bias[:, None]], 1)
    second_moment = torch.einsum("bct,bdt->bcd", seen, seen) / 4
    logits = torch.einsum("kc,bcd,d->bk", top, second_moment, bottom[0])  # trace of X'X b a'
    assert torch.allclose(output.logits, logits, rtol=0, atol=1e-14)
    assert module.loss(output, LABEL)["loss"].item() == pytest.approx(F.cross_entropy(logits, LABEL).item())


def test_initial_weights_are_those_of_the_authors():
    module = AttentionPooling(channels=800, num_classes=50)
    assert module.attention.specific.weight.std().item() == pytest.approx(1e-3, rel=0.02)
    assert module.attention.specific.bias.abs().sum() == 0


def test_features_are_hidden_from_the_class_maps_in_training_only():
    module = AttentionPooling(channels=6, num_classes=4).double()
    assert not torch.equal(module.train()(features()).logits, module(features()).logits)
    assert torch.equal(module.eval()(features()).logits, module(features()).logits)


def test_its_map_is_where_the_most_attended_class_is_seen():
    output = AttentionPooling(channels=6, num_classes=4).double().eval()(features())
    products = output.maps["class_attention"].amax(1, keepdim=True).clamp_min(0)
    assert torch.allclose(output.maps["attention"], products / products.amax((2, 3), keepdim=True))
    assert output.maps["attention"].shape == (3, 1, 2, 2)


@pytest.mark.parametrize(("option", "value"), [("dropout", 1.0), ("dropout", -0.1), ("std", 0.0)])
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=f"loss.{option} must be"):
        AttentionPooling(channels=6, num_classes=4, **{option: value})
