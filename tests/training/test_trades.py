from dataclasses import replace
from functools import partial

import pytest
import torch
from small_classifiers import LOSSES, Model, batch, gradients, kl_by_hand, logits_by_hand, loss_by_hand, same
from torch import nn

from robustfg.attacks import L0, L2, Frame, Linf, Patch, Rigid
from robustfg.attacks.rng.philox import keyed_normals
from robustfg.attacks.threats.base import ThreatError
from robustfg.core.errors import UserError
from robustfg.training import Trades
from robustfg.training.regime import Moment

pytestmark = pytest.mark.numeric

LINF = Linf(epsilon="16/255")


def crafted_by_hand(model, samples, radius, size, steps, *key):
    """Sign steps on the divergence from the clean image with a little noise, clipped to ball and box."""
    clean = samples.image
    noise = keyed_normals(clean[0].numel(), samples.index, *key).view_as(clean).double()
    image, reference = (clean + 0.001 * noise).clamp(0, 1), logits_by_hand(model, clean).detach()
    for _ in range(steps):
        image = image.detach().requires_grad_(True)
        kl_by_hand(reference, logits_by_hand(model, image)).sum().backward()
        image = image.detach() + size * image.grad.sign()
        image = image.clamp(clean - radius, clean + radius).clamp(0, 1)
        model.zero_grad()
    return image


@pytest.mark.parametrize("loss", LOSSES)
def test_images_are_crafted_by_sign_steps_on_the_divergence(loss):
    model, samples = Model(loss), batch()
    crafted = Trades(threat=LINF, seed=4).craft(model, samples, Moment(7, 0.0))
    size = 0.226 * 16 / 255
    assert torch.allclose(crafted, crafted_by_hand(model, samples, 16 / 255, size, 10, 4, "trades", 7), atol=1e-12)
    assert (crafted - samples.image).abs().max() == pytest.approx(16 / 255)


def test_a_growing_radius_takes_the_step_with_it():
    model, samples = Model(), batch()
    crafted = Trades(threat=LINF, ramp_epochs=4, steps=2).craft(model, samples, Moment(7, 1.0))
    expected = crafted_by_hand(model, samples, 4 / 255, 0.226 * 4 / 255, 2, 0, "trades", 7)
    assert torch.allclose(crafted, expected, atol=1e-12)


def test_l2_steps_have_their_length_and_stay_in_the_ball():
    model, samples = Model(), batch()
    for steps, expected in ((1, 0.05), (5, 0.1)):
        crafted = Trades(threat=L2(epsilon=0.1), steps=steps, step_size="eps/2").craft(model, samples, Moment(0, 0.0))
        length = (crafted - samples.image).flatten(1).norm(dim=1)
        assert (length <= expected + 0.02).all()  # the start: 0.001 in each of 108 pixels
        assert (length > expected / 2).all()


@pytest.mark.parametrize("threat", [Frame(epsilon=1), Patch(epsilon="9/36", place=(0, 0)), Patch(epsilon="9/36")])
def test_in_a_region_a_share_of_epsilon_is_a_share_of_the_pixel_range(threat):
    """A share of its epsilon would be a share of an area or of a width."""
    model, samples = Model(), batch()
    samples = samples._replace(image=samples.image * 0.4 + 0.3)
    crafted = Trades(threat=threat, steps=1, step_size="eps/8").craft(model, samples, Moment(0, 0.0))
    moved = (crafted - samples.image).abs()
    changed = moved > 0
    assert ((moved[changed] - 1 / 8).abs() < 6 * 0.001).all()  # the start's noise
    assert changed.any(1).flatten(1).sum(1).tolist() == [20 if isinstance(threat, Frame) else 9] * 5


def test_a_patch_without_a_place_lies_elsewhere_for_every_sample_and_step():
    model, samples = Model(), batch()
    regime = Trades(threat=Patch(epsilon="9/36"), steps=2)
    first, again, second = (regime.craft(model, samples, Moment(step, 0.0)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    places = [{tuple(place) for place in (sample != 0).any(0).nonzero().tolist()} for sample in first - samples.image]
    others = [{tuple(place) for place in (sample != 0).any(0).nonzero().tolist()} for sample in second - samples.image]
    assert all(len(place) == 9 for place in places + others)
    assert len(set(map(frozenset, places))) > 1
    assert places != others


@pytest.mark.parametrize("threat", [L0(epsilon=8), Frame(epsilon=2), Patch(epsilon=0.4), L2(epsilon=0.5)])
def test_every_threat_model_can_grow(threat):
    model, samples = Model(), batch()
    for epoch in (0.01, 1.0, 2.0):
        crafted = Trades(threat=threat, ramp_epochs=2, steps=2).craft(model, samples, Moment(0, epoch))
        threat.scaled(epoch / 2).check(crafted, samples.image)
    assert not torch.equal(crafted, samples.image)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [6.0, 0.5])
def test_loss_and_gradient_are_the_modules_loss_and_beta_times_the_divergence(loss, beta):
    model, samples = Model(loss), batch()
    regime = Trades(threat=LINF, beta=beta)
    adversarial = regime.craft(model, samples, Moment(3, 0.0))
    terms = regime(model, model.loss, samples, 3)
    clean, attacked = logits_by_hand(model, samples.image), logits_by_hand(model, adversarial)
    drift = kl_by_hand(clean, attacked).mean()
    expected = loss_by_hand(model, samples.image, samples.label) + beta * drift
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert terms["divergence"].item() == pytest.approx(drift.item(), rel=1e-10)
    assert same(gradients(model, terms["loss"]), gradients(model, expected))
    assert terms["accuracy"] == (clean.argmax(1) == samples.label).float().mean()
    assert terms["adversarial_accuracy"] == (attacked.argmax(1) == samples.label).float().mean()


def test_crafting_leaves_the_model_as_it_was_and_in_train_mode():
    model, samples = Model(norm=True), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trades(threat=LINF).craft(model, samples, Moment(0, 0.0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_images_are_crafted_in_eval_mode():
    model, samples = Model(norm=True), batch()
    crafted = Trades(threat=LINF).craft(model, samples, Moment(0, 0.0))
    size = 0.226 * 16 / 255
    expected = crafted_by_hand(model.eval(), samples, 16 / 255, size, 10, 0, "trades", 0)
    assert torch.allclose(crafted, expected, atol=1e-12)
    other = crafted_by_hand(model.train(), samples, 16 / 255, size, 10, 0, "trades", 0)
    assert not torch.allclose(crafted, other, atol=1e-3)


def test_logits_of_half_precision_are_scored_in_full():
    model, samples = Model().float(), batch()
    samples = samples._replace(image=samples.image.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = Trades(threat=LINF)(model, model.loss, samples, 0)
    assert terms["divergence"].dtype == torch.float32


def test_images_are_crafted_by_the_divergence_in_full_precision_of_logits_in_half():
    model, samples = Model().float(), batch()
    samples = samples._replace(image=samples.image.float())

    def halved(image, wide=False):
        output = model(image)
        half = output.logits.to(torch.bfloat16)
        return replace(output, logits=half.float() if wide else half)

    narrow, wide = (
        Trades(threat=L2(epsilon=0.5)).craft(partial(halved, wide=wide), samples, Moment(0, 0.0))
        for wide in (False, True)
    )
    assert torch.equal(narrow, wide)


class OneBad(nn.Module):
    """The gradient of one sample is not finite."""

    def __init__(self, value):
        super().__init__()
        self.model, self.value = Model(), value

    def forward(self, image):
        seen = image * 1
        if seen.requires_grad:
            seen.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(2), self.value))
        return self.model(seen)


@pytest.mark.parametrize("threat", [LINF, L2(epsilon=0.5)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sample_whose_gradient_is_not_finite_stays_at_its_start_and_the_others_do_not_mind(value, threat):
    regime, samples, other = Trades(threat=threat), batch(), torch.arange(5) != 2
    moved, crafted = (regime.craft(model, samples, Moment(0, 0.0)) for model in (Model(), OneBad(value)))
    assert torch.equal(crafted[other], moved[other])
    assert 0 < (crafted[2] - samples.image[2]).abs().max() < 6 * 0.001


def test_a_model_that_cuts_the_graph_leaves_every_image_at_its_start():
    model, samples = Model(), batch()
    crafted = Trades(threat=LINF).craft(lambda image: model(image.detach()), samples, Moment(0, 0.0))
    assert 0 < (crafted - samples.image).abs().max() < 6 * 0.001


def test_images_that_are_not_pixels_are_refused_not_clamped():
    samples = batch()
    with pytest.raises(UserError, match=r"images must lie in \[0, 1\]"):
        Trades(threat=LINF).craft(Model(), samples._replace(image=2 * samples.image), Moment(0, 0.0))


class Unbounded(L2):
    def _to_ball(self, image, clean):
        return image


def test_images_that_leave_the_ball_are_no_training_images():
    with pytest.raises(ThreatError, match="perturbation of l2 size"):
        Trades(threat=Unbounded(epsilon=0.1), step_size="2*eps").craft(Model(), batch(), Moment(0, 0.0))


@pytest.mark.parametrize(
    ("option", "message"),
    [({"beta": -1}, "training.beta must be >= 0, got -1"), ({"steps": 0}, "training.steps must be >= 1, got 0"),
     ({"step_size": "eps*2"}, "step size must be"),
     ({"threat": Rigid()}, "training.threat: trades takes gradient steps, which the rigid threat has not")],
)  # fmt: skip
def test_bad_options_are_refused_by_name(option, message):
    with pytest.raises(UserError, match=message):
        Trades(**({"threat": LINF} | option))
