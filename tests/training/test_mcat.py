from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from small_classifiers import Model, batch, classifier, data, gradients, loss_by_hand, regimes, same, trainer

from robustfg.attacks import Backtracking, Linf, NearestWrongCentre
from robustfg.classifier import Classifier
from robustfg.core.errors import UserError
from robustfg.losses import GaussianMixture, MaxMahalanobisCenter, MaxMahalanobisLDA, Softmax
from robustfg.training import Mcat, WeightPerturbation
from robustfg.training.halves import Half
from robustfg.training.regime import Moment

GOLDEN = {
    key: torch.from_numpy(value)
    for key, value in np.load(Path(__file__).parent.parent / "data" / "gm_official.npz").items()
}
EPSILON = 16 / 255


def lkd():
    return Backtracking(
        threat=Linf(epsilon="16/255"), objective=NearestWrongCentre(), size="eps/6", steps=5, last_iterate=True
    )


def mcat(**options):
    return Mcat(**({"attack": {"lkd": lkd()}} | options))


def released_head(classes=4, dim=5):
    options = {"margin": 0.1, "likelihood": 0.05, "likelihood_factor": 1.0, "likelihood_over_all_classes": True}
    return GaussianMixture(channels=dim, num_classes=classes, **options).double()


@pytest.fixture
def golden():
    head = released_head()
    head.means.data.copy_(GOLDEN["means"])
    return head


def half_of(head, features, fading):
    return Half(head(features[:, :, None, None]), GOLDEN["labels"], fading)


def test_clean_terms_equal_the_authors(golden):
    half = half_of(golden, GOLDEN["features"], torch.zeros(6).double())
    mean = mcat().clean_terms(golden, half)["loss"].item()
    assert mean == pytest.approx(GOLDEN["mcat/clean_nogtTrue"].mean().item(), abs=1e-9)
    for row, expected in enumerate(GOLDEN["mcat/clean_nogtTrue"]):
        one = Half(half.output.chunk(6)[row], half.label[row : row + 1], half.fading[row : row + 1])
        assert mcat().clean_terms(golden, one)["loss"].item() == pytest.approx(expected.item(), abs=1e-9)


def test_adversarial_terms_equal_the_authors(golden):
    half = half_of(golden, GOLDEN["mcat/features_adv"], GOLDEN["mcat/weights"])
    found = mcat().attacked_loss(golden, half)
    assert torch.allclose(found, GOLDEN["mcat/adv_nogtTrue"], rtol=0, atol=1e-9)


def test_the_wanted_distance_is_a_share_of_that_between_means(golden):
    assert mcat().tau(golden).item() == pytest.approx(0.7 * GOLDEN["mcat/mean_center_distance"].item(), abs=1e-9)
    assert not mcat().tau(golden).requires_grad


def distances(model, image):
    embedding = model.features(image).mean((2, 3))
    return (embedding[:, None] - model.loss.means).square().sum(2)


@pytest.mark.parametrize("options", [{}, {"beta": 2.0, "nearest": 0.3, "threshold": 1.5, "rho": 3.0}])
def test_loss_and_gradient_of_stage_two_are_the_formulas(options):
    model, samples = Model("gm"), batch()
    regime = mcat(**options)
    image = samples.image.clamp(0.2, 0.8)
    samples = samples._replace(image=image)
    adversarial = image.clone()
    adversarial[3, 0, 0, 0] += EPSILON / 10
    adversarial[4] += EPSILON
    terms = regime.terms(model, model.loss, samples, adversarial)
    clean, moved = distances(model, image[:3]), distances(model, adversarial[3:])
    means = model.loss.means.detach()
    pairs = [(means[i] - means[j]).square().sum() for i in range(3) for j in range(3) if i != j]
    tau = regime.threshold * torch.stack(pairs).mean()
    value = 3 * loss_by_hand(model, image[:3], samples.label[:3])
    value = value + regime.nearest * regime.beta * clean.min(1).values.sum()
    for row, w in enumerate((1 - 0.9**regime.rho, 1.0)):
        label = samples.label[3 + row]
        wrong = torch.cat([moved[row, :label], moved[row, label + 1 :]]).min()
        own = loss_by_hand(model, adversarial[3 + row : 4 + row], label[None])
        value = value + (1 - w) * own + w * regime.beta * (tau - wrong).clamp(min=0)
    assert terms["loss"].item() == pytest.approx(value.item() / 5, rel=1e-9)
    assert same(gradients(model, terms["loss"]), gradients(model, value / 5), 1e-8)


@pytest.mark.parametrize("kind", [MaxMahalanobisCenter, MaxMahalanobisLDA])
def test_fixed_centres_can_be_trained_with_it(kind):
    model, samples = Model(), batch()
    model.loss = kind(channels=4, num_classes=3, embedding_dim=3).double()
    terms = mcat()(model, model.loss, samples, 0)
    terms["loss"].backward()
    assert mcat().tau(model.loss).item() == pytest.approx(0.7 * 2 * 100 * (1 + 1 / 2))
    assert model.features[0].weight.grad.isfinite().all()


def test_stage_one_trains_on_half_of_every_batch():
    model, samples = Model("gm"), batch()
    model.loss.epoch = 1.0
    regime = mcat(clean_epochs=2)
    assert regime.craft(model, samples, Moment(0, 1.0)) is None
    found = regime(model, model.loss, samples, 0)["loss"].item()
    assert found == pytest.approx(loss_by_hand(model, samples.image[:3], samples.label[:3]).item(), rel=1e-10)


def test_images_are_driven_to_the_nearest_wrong_mean():
    model, samples = Model("gm"), batch()
    crafted = mcat().craft(model, samples, Moment(2, 0.0))
    expected = lkd()(model, samples.image[3:], samples.label[3:], samples.index[3:], draw=2)
    assert torch.equal(crafted, torch.cat([samples.image[:3], expected]))


class Means(pl.Callback):
    def __init__(self):
        self.seen, self.others = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.loss.means.detach().clone())
        self.others.append(pl_module.backbone.layers[0].weight.detach().clone())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_means_are_learned_in_stage_one_and_kept_in_stage_two(optimizer):
    look, model = Means(), classifier(regimes(clean_epochs=1)["mcat"])
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    model.optimizer = lambda parameters: optimizer(parameters, lr=0.01, weight_decay=0.1, **options)
    trainer(callbacks=[look]).fit(model, data())
    assert len(look.seen) == 12
    assert all(not torch.equal(a, b) for a, b in zip(look.seen[:5], look.seen[1:6], strict=True))
    assert all(torch.equal(look.seen[5], mean) for mean in look.seen[6:])
    assert not torch.equal(look.others[5], look.others[6])
    assert model.loss.means.requires_grad


class Following(MaxMahalanobisCenter):
    """Means that move whenever a loss is taken in train mode."""

    def loss(self, output, label):
        if self.training:
            self.means += 1
        return super().loss(output, label)


def test_means_that_follow_the_features_are_kept_in_stage_two_as_well():
    model, samples = Model(), batch()
    model.loss = Following(channels=4, num_classes=3, embedding_dim=3).double()
    before = model.loss.means.clone()
    mcat()(model, model.loss, samples, 0)
    assert torch.equal(model.loss.means, before)
    assert model.loss.training
    with torch.no_grad():
        mcat(clean_epochs=1).terms(model, model.loss, samples, None)
    assert not torch.equal(model.loss.means, before)


def test_a_head_without_means_is_refused_with_those_that_have_them():
    for regime in (mcat(), WeightPerturbation(regime=mcat(clean_epochs=1))):
        with pytest.raises(UserError, match=r"training=mcat needs .* loss=gm, loss=mmc or loss=mmlda, not Softmax"):
            Classifier(
                backbone=torch.nn.Identity(), loss=Softmax(channels=4, num_classes=3), num_classes=3, regime=regime
            )


@pytest.mark.parametrize("option", ["beta", "nearest", "threshold"])
def test_options_that_make_no_sense_are_refused_by_name(option):
    with pytest.raises(UserError, match=rf"training\.{option} must be >= 0, got -1"):
        mcat(**{option: -1})
