import copy

import pytest
import torch
from small_classifiers import LOSSES, Model, batch, gradients, pgd, same
from torch import nn

from robustfg.attacks import Linf
from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses import LossModule
from robustfg.training import Adversarial, Mart, Trades, WeightPerturbation
from robustfg.training.regime import Moment

pytestmark = pytest.mark.numeric

BELOW = {
    "adversarial": lambda: Adversarial(attack={"pgd": pgd()}),
    "trades": lambda: Trades(threat=Linf(epsilon="16/255"), steps=2),
    "mart": lambda: Mart(attack={"pgd": pgd()}),
}


def moved(model, regime, samples, adversarial, gamma):
    """A copy whose weights of two and more dimensions went gamma times their norm along the gradient."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    regime.terms(copied, copied.loss, samples, adversarial)["loss"].backward()
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.dim() > 1:
                slope = parameter.grad
                parameter += gamma * parameter.norm() * slope / slope.norm()
    return copied


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("below", BELOW)
def test_loss_and_gradient_are_those_at_the_moved_weights(loss, below):
    model, samples, regime = Model(loss, norm=True), batch(), BELOW[below]()
    adversarial = regime.craft(model, samples, Moment(3, 0.0))
    worse = moved(model, regime, samples, adversarial, 0.02)
    expected = regime.terms(worse, worse.loss, samples, adversarial)
    plain = regime.terms(copy.deepcopy(model), model.loss, samples, adversarial)
    terms = WeightPerturbation(regime=regime, gamma=0.02)(model, model.loss, samples, 3)
    assert set(terms) == set(expected)
    assert all(terms[name].item() == pytest.approx(expected[name].item(), rel=1e-9) for name in terms)
    assert terms["loss"] > plain["loss"] + 1e-4
    assert same(gradients(model, terms["loss"]), gradients(worse, expected["loss"]))


def test_the_weights_themselves_stay_bit_for_bit_and_get_the_gradient():
    model, samples = Model(), batch()
    before = [parameter.clone() for parameter in model.parameters()]
    regime = WeightPerturbation(regime=BELOW["adversarial"]())
    for _ in range(2):
        terms = regime(model, model.loss, samples, 0)
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        terms["loss"].backward()
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        assert all(parameter.is_leaf and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("call", [1, 2])
def test_an_error_in_either_pass_leaves_weights_and_buffers(call):
    model, samples = Model(norm=True), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt

    below = BELOW["adversarial"]()
    adversarial = below.craft(model, samples, Moment(0, 0.0))
    model.loss.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        WeightPerturbation(regime=below).terms(model, model.loss, samples, adversarial)
    assert len(calls) == call
    after = model.state_dict()
    kept = [name for name in before if call == 1 or name not in dict(model.named_buffers())]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())


def test_batch_norm_counts_one_pass():
    model, samples = Model(norm=True), batch()
    twin, below = copy.deepcopy(model), BELOW["adversarial"]()
    WeightPerturbation(regime=below, gamma=0.0)(model, model.loss, samples, 0)
    below(twin, twin.loss, samples, 0)
    assert model.features[1].num_batches_tracked == 1
    assert all(torch.allclose(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


class Centres(LossModule):
    """Uses a parameter outside ``forward``."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.arange(12.0).reshape(3, 4).double() / 10)

    def forward(self, feature_map):
        embedding = feature_map.mean((2, 3))
        return Output(logits=embedding[:, :3], embedding=embedding)

    def loss(self, output, label):
        return {"loss": (output.embedding - self.centres[label]).square().mean()}


def test_parameters_that_a_loss_uses_outside_forward_are_moved_too():
    model, samples, regime = Model(), batch(), BELOW["adversarial"]()
    model.loss = Centres()
    worse = moved(model, regime, samples, samples.image, 0.1)
    expected = regime.terms(worse, worse.loss, samples, samples.image)["loss"]
    terms = WeightPerturbation(regime=regime, gamma=0.1).terms(model, model.loss, samples, samples.image)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("epoch", "perturbed"), [(0.5, False), (1.4, False), (1.5, True)])
def test_clean_and_warmup_epochs_are_those_of_the_regime_below(epoch, perturbed):
    model, samples = Model(), batch()
    model.loss.epoch = epoch
    below = Adversarial(attack={"pgd": pgd()}, clean_epochs=1)
    plain = below(model, model.loss, samples, 0)["loss"]
    value = WeightPerturbation(regime=below, gamma=0.02, warmup_epochs=1.5)(model, model.loss, samples, 0)["loss"]
    assert (value > plain + 1e-4) if perturbed else (value == plain)


def test_a_weight_without_gradient_stays():
    model, samples, below = Model(), batch(), BELOW["adversarial"]()
    model.unused = nn.Parameter(torch.ones(2, 2).double())
    terms = WeightPerturbation(regime=below)(model, model.loss, samples, 0)
    assert terms["loss"].isfinite()
    model.loss.classifier.weight.requires_grad_(False)
    frozen = WeightPerturbation(regime=below)(model, model.loss, samples, 0)
    assert frozen["loss"].isfinite()
    assert frozen["loss"] != terms["loss"]


@pytest.mark.parametrize("option", ["gamma", "warmup_epochs"])
def test_negative_options_are_refused_by_name(option):
    with pytest.raises(UserError, match=rf"training\.{option} must be >= 0, got -1"):
        WeightPerturbation(regime=BELOW["mart"](), **{option: -1})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_whose_gradient_is_not_finite_stays(value):
    model, samples, below = Model(), batch(), BELOW["adversarial"]()
    adversarial = below.craft(model, samples, Moment(0, 0.0))
    plain, regime = below.terms(model, model.loss, samples, adversarial), WeightPerturbation(regime=below)
    for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
        weight.register_hook(lambda gradient: gradient * value)
    assert torch.equal(regime.terms(model, model.loss, samples, adversarial)["loss"], plain["loss"])


def test_where_only_biases_learn_nothing_is_moved():
    model, samples, below = Model(), batch(), BELOW["adversarial"]()
    for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
        weight.requires_grad_(False)
    adversarial = below.craft(model, samples, Moment(0, 0.0))
    terms = WeightPerturbation(regime=below).terms(model, model.loss, samples, adversarial)
    assert torch.equal(terms["loss"], below.terms(model, model.loss, samples, adversarial)["loss"])
    terms["loss"].backward()
