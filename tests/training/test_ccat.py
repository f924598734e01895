import pytest
import torch
from small_classifiers import Model, batch, gradients, logits_by_hand, loss_by_hand, pgd, same

from robustfg.attacks import L2, Backtracking, Linf, Rigid, Spatial, WrongConfidence
from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output
from robustfg.losses import AttentionPooling, Center, CosFace, GaussianMixture, MaximalSeparation, Triplet
from robustfg.training import Ccat
from robustfg.training.regime import Moment

EPSILON = 16 / 255


def climb(**options):
    return Backtracking(
        **({"threat": Linf(epsilon="16/255"), "objective": WrongConfidence(), "size": "eps/6", "steps": 5,
            "last_iterate": True} | options)
    )  # fmt: skip


def ccat(**options):
    return Ccat(**({"attack": {"ccat": climb()}} | options))


def nudged(samples, amounts):
    """Every image with one pixel value moved by so much."""
    image = samples.image.clone()
    image[:, 0, 0, 0] = 0.5
    moved = image.clone()
    moved[:, 0, 0, 0] += torch.tensor(amounts, dtype=image.dtype)
    return samples._replace(image=image), moved


def test_the_first_half_stays_clean_and_the_second_is_attacked_in_eval_mode():
    model, samples = Model(norm=True), batch()
    crafted = ccat().craft(model, samples, Moment(7, 0.0))
    assert torch.equal(crafted[:3], samples.image[:3])
    expected = climb()(model, samples.image[3:], samples.label[3:], samples.index[3:], draw=7)
    assert torch.equal(crafted[3:], expected)
    assert (crafted[3:] != samples.image[3:]).flatten(1).any(1).all()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("rho", [10.0, 2.0])
def test_loss_and_gradient_are_the_papers_cross_entropy_with_fading_targets(rho):
    model = Model()
    samples, adversarial = nudged(batch(), [0.0, 0.0, 0.0, EPSILON / 5, 2 * EPSILON])
    terms = ccat(rho=rho).terms(model, model.loss, samples, adversarial)
    gamma = [0, 0, 0, 1 - (1 - 0.2) ** rho, 1]
    log_probability = logits_by_hand(model, adversarial).log_softmax(1)
    value = 0.0
    for row, (label, share) in enumerate(zip(samples.label, gamma, strict=True)):
        target = torch.full((3,), share / 3, dtype=torch.float64)
        target[label] += 1 - share
        value = value - (target * log_probability[row]).sum() / 5
    assert terms["loss"].item() == pytest.approx(value.item(), rel=1e-10)
    assert terms["fading"].item() == pytest.approx(sum(gamma[3:]) / 2, rel=1e-10)
    assert same(gradients(model, terms["loss"]), gradients(model, value))
    right = logits_by_hand(model, adversarial).argmax(1) == samples.label
    assert terms["accuracy"] == right[:3].float().mean()
    assert terms["adversarial_accuracy"] == right[3:].float().mean()


def test_with_gm_margin_and_likelihood_hold_on_clean_images_alone():
    model = Model("gm")
    samples, adversarial = nudged(batch(), [0.0, 0.0, 0.0, EPSILON, -EPSILON])
    terms = ccat().terms(model, model.loss, samples, adversarial)
    uniform = -logits_by_hand(model, adversarial[3:]).log_softmax(1).mean(1)
    expected = 3 / 5 * loss_by_hand(model, samples.image[:3], samples.label[:3]) + uniform.sum() / 5
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert same(gradients(model, terms["loss"]), gradients(model, expected))


def test_distance_is_told_in_the_norm_of_the_threat():
    samples, _ = nudged(batch(), [0.0] * 5)
    change = torch.zeros_like(samples.image)
    change[3, :, 0, 0] = 0.1
    regime = ccat(attack={"l2": climb(threat=L2(epsilon=0.5))})
    expected = 1 - (1 - 0.1 * 3**0.5 / 0.5) ** 10
    assert regime.fading(change).tolist() == pytest.approx([0, 0, 0, expected, 0])


@pytest.mark.parametrize("kind", [AttentionPooling, Center, CosFace, GaussianMixture, MaximalSeparation, Triplet])
def test_every_loss_module_can_be_trained_with_it(kind):
    model, samples = Model(), batch()
    model.loss = kind(channels=4, num_classes=3).double()
    terms = ccat()(model, model.loss, samples, 0)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_batch_of_one_is_trained_on_clean():
    model, samples = Model(), Batch(*(part[:1] for part in batch()))
    regime = ccat()
    assert regime.craft(model, samples, Moment(0, 0.0)) is None
    assert regime(model, model.loss, samples, 0)["loss"].item() == pytest.approx(
        loss_by_hand(model, samples.image, samples.label).item()
    )


def test_clean_epochs_are_clean_and_the_radius_grows_after_them():
    model, samples = Model(), batch()
    regime = ccat(clean_epochs=2, ramp_epochs=4)
    assert regime.craft(model, samples, Moment(0, 1.9)) is None
    quarter = regime.craft(model, samples, Moment(0, 3.0)) - samples.image
    assert quarter.abs().max() <= EPSILON / 4 + 1e-9
    model.loss.epoch = 0.0
    assert set(regime(model, model.loss, samples, 0)) == {"loss", "accuracy"}


def test_crafting_in_train_mode_asks_for_whole_batches():
    assert ccat(craft_in_train_mode=True).craft(Model(norm=True), batch(), Moment(0, 0.0)) is not None
    with pytest.raises(UserError, match=r"training\.craft_in_train_mode"):
        ccat(craft_in_train_mode=True, attack={"a": climb(last_iterate=False)})


def test_at_its_minimum_an_image_at_the_border_is_of_no_class_and_a_nearer_one_of_its_own_in_part():
    model = Model()
    samples, adversarial = nudged(batch(), [0.0, 0.0, 0.0, EPSILON / 10, EPSILON])
    logits = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        ccat().terms(lambda image: Output(logits, logits), model.loss, samples, adversarial)["loss"].backward()
        optimizer.step()
    own = logits.softmax(1)[torch.arange(5), samples.label]
    assert (own[:3] > 0.99).all()
    assert own[3].item() == pytest.approx(0.9**10 + (1 - 0.9**10) / 3, abs=1e-4)
    assert own[4].item() == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rho": 0}, r"training\.rho must be > 0, got 0"),
     ({"attack": {"a": climb(), "b": climb()}}, r"training\.attack must be one attack, got a, b"),
     ({"attack": {}}, r"training\.attack is empty"),
     ({"attack": {"a": pgd(), "b": pgd()}}, r"training\.attack must be one"),
     ({"attack": {"a": climb(threat=Linf(epsilon=0))}}, r"training\.attack: .*must be > 0"),
     ({"attack": {"a": Spatial(threat=Rigid())}}, r"training\.attack: how far")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        ccat(**options)
