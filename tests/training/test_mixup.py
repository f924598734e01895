"""Mixup and CutMix against their definitions."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from small_classifiers import Model, batch, fitted, gradients, logits_by_hand, loss_by_hand, regimes, same
from torch import nn

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.training import Mixup, WeightPerturbation, mixup
from robustfg.training.mixup import _rectangle
from robustfg.training.regime import Moment


def crafted(regime, samples, step=0, slot=0):
    return regime.craft(None, samples, Moment(step, 0.0, slot)), regime.mixture


def ids(count, size=8):
    """Every image is filled with its sample's id."""
    index = torch.arange(count) * 7 % 97
    image = index.double()[:, None, None, None].expand(-1, 3, size, size).contiguous()
    return Batch(image, torch.arange(count) % 3, index)


@pytest.mark.parametrize("loss", ["softmax", "gm"])
@pytest.mark.parametrize("cutmix_share", [0, 1])
def test_the_loss_is_that_of_both_labels_by_their_shares(loss, cutmix_share):
    model, samples, regime = Model(loss), batch(), Mixup(mixup_alpha=1, cutmix_share=cutmix_share)
    terms = regime(model, model.loss, samples, 3)
    image, mixture = crafted(regime, samples, 3)
    weight, other = mixture.weight, samples.label[mixture.partner]
    assert 0 < weight < 1
    expected = weight * loss_by_hand(model, image, samples.label) + (1 - weight) * loss_by_hand(model, image, other)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert same(gradients(model, terms["loss"]), gradients(model, expected))
    right = [(logits_by_hand(model, image).argmax(1) == y).double().mean() for y in (samples.label, other)]
    assert terms["accuracy"].item() == pytest.approx(float(weight * right[0] + (1 - weight) * right[1]))


def test_for_cross_entropy_that_is_the_loss_with_mixed_labels():
    model, samples, regime = Model("softmax"), batch(), Mixup(cutmix_share=0)
    terms = regime(model, model.loss, samples, 5)
    image, mixture = crafted(regime, samples, 5)
    one_hot = nn.functional.one_hot(samples.label, 3).double()
    mixed = mixture.weight * one_hot + (1 - mixture.weight) * one_hot[mixture.partner]
    expected = nn.functional.cross_entropy(logits_by_hand(model, image), mixed)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-10)


def test_one_forward_pass_serves_both_labels():
    model, samples, calls = Model(), batch(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    Mixup()(model, model.loss, samples, 0)
    assert len(calls) == 1


def test_mixup_averages_two_images():
    samples, regime = ids(12), Mixup(mixup_alpha=1, cutmix_share=0)
    image, mixture = crafted(regime, samples)
    expected = mixture.weight * samples.image + (1 - mixture.weight) * samples.image[mixture.partner]
    assert torch.equal(image, expected)


def test_cutmix_puts_a_rectangle_of_the_partner_into_the_image_and_weighs_by_its_area():
    samples, regime = ids(12, size=20), Mixup(cutmix_share=1)
    areas = []
    for step in range(40):
        image, mixture = crafted(regime, samples, step)
        foreign = image != samples.image
        assert torch.equal(image, torch.where(foreign, samples.image[mixture.partner], samples.image))
        spots = foreign[0, 0].nonzero()
        area = len(spots)
        assert all(torch.equal(one, foreign[0, 0]) for one in foreign.flatten(0, 1))
        if area:
            (top, left), (bottom, right) = spots.min(0).values.tolist(), (spots.max(0).values + 1).tolist()
            assert area == (bottom - top) * (right - left)
        assert mixture.weight == pytest.approx(1 - area / 400)
        areas.append(area)
    assert len(set(areas)) > 20


@pytest.mark.parametrize(
    ("share", "x", "y", "expected"),
    [
        (0.25, 0.5, 0.5, (5, 15, 10, 30)),
        (0.25, 0.0, 0.0, (0, 5, 0, 10)),
        (0.25, 0.999, 0.999, (14, 20, 29, 40)),
        (0.0, 0.5, 0.5, (10, 10, 20, 20)),
        (1.0, 0.5, 0.5, (0, 20, 0, 40)),
    ],
)
def test_rectangles_have_the_images_shape_and_are_clipped_to_it(share, x, y, expected):
    assert _rectangle(20, 40, share, x, y) == expected


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_weights_follow_the_beta_distribution(alpha):
    regime, samples = Mixup(mixup_alpha=alpha, cutmix_share=0), ids(2, size=1)
    weights = [crafted(regime, samples, step)[1].weight for step in range(800)]
    assert kstest(weights, "beta", args=(alpha, alpha)).pvalue > 0.01
    assert kstest(weights, "beta", args=(alpha + 1, alpha)).pvalue < 1e-6


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_rectangles_take_one_minus_a_beta_distributed_share(alpha, monkeypatch):
    shares, regime = [], Mixup(cutmix_alpha=alpha, cutmix_share=1)
    monkeypatch.setattr(mixup, "_rectangle", lambda height, width, share, x, y: shares.append(share) or (0, 0, 0, 0))
    for step in range(800):
        crafted(regime, ids(2, size=1), step)
    assert kstest(shares, "beta", args=(alpha, alpha)).pvalue > 0.01
    assert kstest(shares, "beta", args=(2 * alpha, 2 * alpha)).pvalue < 1e-3


def test_the_share_of_cutmix_is_kept():
    regime, samples, cut = Mixup(cutmix_share=0.3), ids(2, size=16), 0
    for step in range(600):
        image, mixture = crafted(regime, samples, step)
        cut += torch.equal(image, torch.where(image != samples.image, samples.image[mixture.partner], samples.image))
    assert abs(cut / 600 - 0.3) < 0.06


@pytest.mark.parametrize("count", [2, 3, 10, 97])
def test_everyone_is_mixed_with_another_and_everyone_is_used_once(count):
    partner = crafted(Mixup(), ids(count))[1].partner
    assert sorted(partner.tolist()) == list(range(count))
    assert (partner != torch.arange(count)).all()


def test_a_single_sample_is_mixed_with_itself():
    samples = ids(1)
    for share in (0, 1):
        assert torch.allclose(crafted(Mixup(cutmix_share=share), samples)[0], samples.image)


def test_mixtures_depend_on_seed_step_slot_and_ids_but_not_on_the_order_of_the_batch():
    samples = ids(10)
    first, mixture = crafted(Mixup(), samples, 4)
    torch.manual_seed(123)
    assert torch.equal(crafted(Mixup(), samples, 4)[0], first)
    order = torch.randperm(10)
    shuffled, other = crafted(Mixup(), Batch(*(part[order] for part in samples)), 4)
    assert torch.equal(shuffled, first[order])
    assert torch.equal(samples.index[order][other.partner], samples.index[mixture.partner][order])
    for regime, step, slot in ((Mixup(seed=1), 4, 0), (Mixup(), 5, 0), (Mixup(), 4, 1)):
        assert not torch.equal(crafted(regime, samples, step, slot)[0], first)


def test_the_clean_batch_is_left_as_it_was_and_mixtures_stay_in_the_box():
    samples = batch()
    before = samples.image.clone()
    for step in range(20):
        image, _ = crafted(Mixup(), samples, step)
        assert 0 <= image.min() <= image.max() <= 1
        assert image.dtype == before.dtype
    assert torch.equal(samples.image, before)


def test_weights_can_be_perturbed_on_top():
    model, samples = Model(), batch()
    plain, perturbed = Mixup(), WeightPerturbation(regime=Mixup(), gamma=0.05)
    assert perturbed(model, model.loss, samples, 2)["loss"] > plain(model, model.loss, samples, 2)["loss"]


def test_training_on_mixtures_differs_from_training_on_images_and_repeats():
    first, again, standard = fitted(Mixup()), fitted(Mixup()), fitted(regimes()["standard"])
    weights = [model.backbone.layers[0].weight for model in (first, again, standard)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    assert all(np.isfinite(value.detach().numpy()).all() for value in first.parameters())


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("mixup_alpha", 0, "> 0 and finite"), ("cutmix_alpha", -1, "> 0 and finite"), ("mixup_alpha", math.inf, "> 0"),
        ("cutmix_share", 1.5, "in [0, 1]"), ("cutmix_share", math.nan, "in [0, 1]"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(option, value, allowed):
    with pytest.raises(UserError, match=re.escape(f"training.{option} must be {allowed}")):
        Mixup(**{option: value})
