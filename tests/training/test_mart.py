import pytest
import torch
from small_classifiers import LOSSES, Model, batch, gradients, kl_by_hand, logits_by_hand, loss_by_hand, pgd, same

from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output
from robustfg.losses import Softmax
from robustfg.training import Mart
from robustfg.training.regime import Moment


def parts_by_hand(model, samples, adversarial):
    clean, attacked = (logits_by_hand(model, image).softmax(1) for image in (samples.image, adversarial))
    rows = torch.arange(len(samples.label))
    others = attacked.clone()
    others[rows, samples.label] = 0
    boost = -(1 - others.max(1).values).log().mean()
    drift = kl_by_hand(clean.log(), attacked.log()) * (1 - clean[rows, samples.label])
    return boost, drift.mean()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [5.0, 1.5])
def test_loss_and_gradient_are_those_of_the_paper_with_the_modules_own_loss(loss, beta):
    model, samples = Model(loss), batch()
    regime = Mart(attack={"pgd": pgd(10)}, beta=beta)
    adversarial = pgd(10)(model, samples.image, samples.label, samples.index, draw=3)
    assert torch.equal(regime.craft(model, samples, Moment(3, 0.0)), adversarial)
    terms = regime(model, model.loss, samples, 3)
    boost, drift = parts_by_hand(model, samples, adversarial)
    expected = loss_by_hand(model, adversarial, samples.label) + boost + beta * drift
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert terms["boost"].item() == pytest.approx(boost.item(), rel=1e-10)
    assert terms["divergence"].item() == pytest.approx(drift.item(), rel=1e-10)
    assert same(gradients(model, terms["loss"]), gradients(model, expected))


def test_with_softmax_the_supervised_part_is_the_boosted_cross_entropy():
    model, samples = Model(), batch()
    regime = Mart(attack={"pgd": pgd()}, beta=0.0)
    adversarial = regime.craft(model, samples, Moment(0, 0.0))
    value = 0.0
    for row, label in zip(logits_by_hand(model, adversarial).softmax(1), samples.label, strict=True):
        others = torch.cat([row[:label], row[label + 1 :]])
        value -= (row[label].log() + (1 - others.max()).log()) / len(samples.label)
    assert regime(model, model.loss, samples, 0)["loss"].item() == pytest.approx(value.item(), rel=1e-10)


def test_a_hopeless_sample_still_has_a_finite_loss_and_a_gradient():
    logits = torch.tensor([[0.0, 300.0, -5.0]], requires_grad=True)
    samples = Batch(torch.zeros(1, 3, 4, 4), torch.tensor([0]), torch.tensor([0]))
    regime, loss = Mart(attack={"pgd": pgd()}, beta=0.0), Softmax(channels=2, num_classes=3)
    terms = regime.terms(lambda image: Output(logits=logits, embedding=logits), loss, samples, samples.image)
    assert terms["boost"].item() == pytest.approx(300, rel=1e-3)
    terms["boost"].backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.9933, 1.0, -0.0067], abs=1e-3)


def test_clean_epochs_use_the_modules_loss_alone():
    model, samples = Model("gm"), batch()
    model.loss.epoch = 1.9
    terms = Mart(attack={"pgd": pgd()}, clean_epochs=2)(model, model.loss, samples, 0)
    assert terms["loss"].item() == pytest.approx(loss_by_hand(model, samples.image, samples.label).item(), rel=1e-10)
    assert set(terms) == {"loss", "classification", "likelihood", "accuracy"}


def test_a_negative_beta_is_refused_by_name():
    with pytest.raises(UserError, match=r"training\.beta must be >= 0, got -2"):
        Mart(attack={"pgd": pgd()}, beta=-2)
