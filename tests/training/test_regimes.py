from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustfg.attacks import (
    L0,
    Cascade,
    CrossEntropy,
    Engine,
    Frame,
    GradientAttack,
    Linf,
    Margin,
    Patch,
    Rigid,
    Spatial,
    Steepest,
    TargetedMargin,
    TopClasses,
    UniversalPerturbation,
)
from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output
from robustfg.losses import LossModule
from robustfg.training import Adversarial, Fast, Guard, Mart, Standard
from robustfg.training.crafted import weakened
from robustfg.training.regime import Moment

pytestmark = pytest.mark.numeric


class Head(LossModule):
    """Cross-entropy plus a tenth of the mean squared embedding, both logged."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, feature_map):
        embedding = feature_map.mean((2, 3))
        return Output(logits=self.linear(embedding), embedding=embedding)

    def loss(self, output, label):
        classification, decay = F.cross_entropy(output.logits, label), output.embedding.square().mean()
        return {"loss": classification + 0.1 * decay, "classification": classification, "decay": decay}


class Model(nn.Module):
    """Remembers what it is given in train mode, which is what it is trained on."""

    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Softplus(beta=5)
        )
        self.loss = Head()
        self.trained_on = []
        self.train()

    def forward(self, image):
        if self.training:
            self.trained_on.append(image.detach().clone())
        return self.loss(self.features(image))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 6, 6, generator=generator)
    return Batch(image, torch.tensor([0, 1, 2, 0, 1]), torch.tensor([11, 4, 8, 2, 30]))


def pgd(name="pgd", steps=3, objective=None, last_iterate=True):
    return GradientAttack(
        threat=Linf(epsilon="16/255"),
        step=Steepest(size="eps/2"),
        steps=steps,
        objective=objective or CrossEntropy(),
        random_start=True,
        last_iterate=last_iterate,
        name=name,
    )


def terms_by_hand(model, image, label):
    feature_map = model.features(image).mean((2, 3))
    logits = feature_map @ model.loss.linear.weight.T + model.loss.linear.bias
    log_probability = logits - logits.logsumexp(1, keepdim=True)
    classification = -log_probability[torch.arange(len(label)), label].mean()
    decay = feature_map.pow(2).sum() / feature_map.numel()
    accuracy = sum(row.argmax() == true for row, true in zip(logits, label, strict=True)) / len(label)
    return {"loss": classification + 0.1 * decay, "classification": classification, "decay": decay}, accuracy


def balanced(model, image):
    """Makes the model predict every class about as often as the others, and gives its predictions on these images."""
    with torch.no_grad():
        model.loss.linear.weight *= 10
        model.loss.linear.bias -= model.eval()(image).logits.mean(0)
        label = model(image).logits.argmax(1)
    model.train()
    return label


def same_gradients(model, first, second):
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(first, parameters), torch.autograd.grad(second, parameters), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_standard_training_is_the_plain_loss_on_the_clean_images(batch):
    model = Model()
    terms = Standard()(model, model.loss, batch, 0)
    expected, accuracy = terms_by_hand(model, batch.image, batch.label)
    assert set(terms) == {*expected, "accuracy"}
    for name, value in expected.items():
        assert torch.allclose(terms[name], value, atol=1e-6)
    assert terms["accuracy"] == accuracy
    assert len(model.trained_on) == 1
    assert torch.equal(model.trained_on[0], batch.image)
    assert same_gradients(model, terms["loss"], expected["loss"])


@pytest.mark.parametrize("step", [0, 7])
def test_adversarial_training_is_the_loss_on_what_the_attack_returns(batch, step):
    model = Model()
    adversarial = pgd()(model, batch.image, batch.label, batch.index, draw=step)
    terms = Adversarial(attack={"pgd": pgd()})(model, model.loss, batch, step)
    expected, accuracy = terms_by_hand(model, adversarial, batch.label)
    assert len(model.trained_on) == 1
    assert torch.equal(model.trained_on[0], adversarial)
    assert not torch.allclose(adversarial, batch.image, atol=1e-3)
    assert set(terms) == {*expected, "adversarial_accuracy"}
    for name, value in expected.items():
        assert torch.allclose(terms[name], value, atol=1e-6)
    assert terms["adversarial_accuracy"] == accuracy
    assert same_gradients(model, terms["loss"], expected["loss"])


def test_every_step_attacks_with_other_random_numbers(batch):
    model, regime = Model(), Adversarial(attack={"pgd": pgd(steps=1)})
    for step in (0, 1, 0):
        regime(model, model.loss, batch, step)
    first, second, again = model.trained_on
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(first, again)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_clean_share_weighs_the_clean_loss_and_the_rest_is_adversarial(batch, share):
    model = Model()
    batch = batch._replace(label=balanced(model, batch.image))
    adversarial = pgd()(model, batch.image, batch.label, batch.index, draw=3)
    terms = Adversarial(attack={"pgd": pgd()}, clean_share=share)(model, model.loss, batch, 3)
    clean, accuracy = terms_by_hand(model, batch.image, batch.label)
    attacked, adversarial_accuracy = terms_by_hand(model, adversarial, batch.label)
    expected = {name: share * clean[name] + (1 - share) * attacked[name] for name in clean}
    assert set(terms) == {*expected, "accuracy", "adversarial_accuracy"}
    for name, value in expected.items():
        assert torch.allclose(terms[name], value, atol=1e-6)
    assert abs(clean["loss"] - attacked["loss"]) > 1e-3
    assert terms["accuracy"] == accuracy == 1
    assert terms["adversarial_accuracy"] == adversarial_accuracy < 1
    assert same_gradients(model, terms["loss"], expected["loss"])


def test_clean_and_attacked_images_go_through_batch_norm_together(batch):
    model = Model(norm=True)
    adversarial = pgd()(model, batch.image, batch.label, batch.index, draw=0)
    Adversarial(attack={"pgd": pgd()}, clean_share=0.5)(model, model.loss, batch, 0)
    assert len(model.trained_on) == 1
    assert torch.equal(model.trained_on[0], torch.cat([batch.image, adversarial]))
    with torch.no_grad():
        expected = 0.1 * model.features[0](torch.cat([batch.image, adversarial])).mean((0, 2, 3))
    assert torch.allclose(model.features[1].running_mean, expected, atol=1e-6)


def test_several_attacks_take_turns_by_step(batch):
    attacks = {"weak": pgd("weak", 1), "strong": pgd("strong", 4), "margin": pgd("margin", 2, Margin(), False)}
    model, regime = Model(), Adversarial(attack=attacks)
    steps = [0, 1, 2, 3, 10]
    for step in steps:
        regime(model, model.loss, batch, step)
    for step, image in zip(steps, model.trained_on, strict=True):
        attack = attacks[["weak", "strong", "margin"][step % 3]]
        assert torch.equal(image, attack(model, batch.image, batch.label, batch.index, draw=step))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_model_is_left_in_train_mode_with_gradients_on_and_only_trained_on_once(batch, share):
    model, clean = Model(norm=True), batch.image.clone()
    terms = Adversarial(attack={"pgd": pgd()}, clean_share=share)(model, model.loss, batch, 0)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    assert model.features[1].num_batches_tracked == 1
    assert torch.equal(batch.image, clean)
    terms["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.features[0].parameters() if parameter.dim() > 1)


def test_attacks_are_crafted_in_full_precision_under_autocast(batch):
    model = Model()
    expected = pgd()(model, batch.image, batch.label, batch.index, draw=0)
    precisions = []
    model.features[0].register_forward_hook(
        lambda module, args, output: precisions.append((module.training, output.dtype))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Adversarial(attack={"pgd": pgd()})(model, model.loss, batch, 0)
    assert torch.equal(model.trained_on[0], expected)
    assert set(precisions) == {(False, torch.float32), (True, torch.bfloat16)}


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_clean_share_outside_its_range_is_refused_by_name(share):
    with pytest.raises(UserError, match=r"training\.clean_share must be in \[0, 1\), got"):
        Adversarial(attack={"pgd": pgd()}, clean_share=share)


def test_training_on_no_attack_is_refused_by_name():
    with pytest.raises(UserError, match=r"training\.attack is empty"):
        Adversarial(attack={})


def test_epsilon_grows_after_the_clean_epochs():
    regime = Adversarial(attack={"pgd": pgd()}, clean_epochs=2, ramp_epochs=4)
    strengths = [regime.strength(epoch) for epoch in (0, 1.9, 2, 3, 5, 6, 60, float("inf"))]
    assert strengths == pytest.approx([0, 0, 0, 0.25, 0.75, 1, 1, 1])
    assert Adversarial(attack={"pgd": pgd()}).strength(0) == 1


def test_a_weakened_attack_stays_in_the_smaller_ball():
    attack = weakened(replace(pgd(), step=Steepest(size="eps/4")), 0.25)
    image = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    adversarial = attack(lambda x: x.flatten(1)[:, :3] * 10, image, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert 0 < (adversarial - image).abs().max() <= pgd().threat.radius / 4 + 1e-6
    assert weakened(attack, 1) is attack


@pytest.mark.parametrize("epoch", [0.01, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(
    "threat", [L0(epsilon=9), Frame(epsilon=3), Patch(epsilon=0.3), Patch(epsilon=0.3, place=(0, 1)), Rigid()]
)
def test_the_radius_of_every_threat_model_grows(batch, threat, epoch):
    attack = Spatial(threat=threat, tries=4) if isinstance(threat, Rigid) else replace(pgd(), threat=threat)
    regime, model = Adversarial(attack={"a": attack}, ramp_epochs=4), Model()
    image = regime.craft(model, batch, Moment(0, epoch))
    used = threat.scaled(min(1, epoch / 4))
    assert torch.equal(image, attack.within(used)(model, batch.image, batch.label, batch.index, draw=0))
    if not isinstance(threat, Rigid):
        used.check(image, batch.image)
        assert torch.equal(image, batch.image) == (epoch == 0.01)


def test_an_attack_that_cannot_be_weakened_is_refused_by_name():
    fixed = UniversalPerturbation(threat=Linf(epsilon=0.1), perturbation=torch.full((1, 3, 6, 6), 0.1))
    Adversarial(attack={"fixed": fixed}, clean_epochs=1)
    message = r"training\.attack\.fixed cannot be weakened, set training\.ramp_epochs=0: .*learn it within that epsilon"
    for kind in (Adversarial, Mart):
        with pytest.raises(UserError, match=message):
            kind(attack={"fixed": fixed}, ramp_epochs=1)
    with pytest.raises(UserError, match=r"training\.guard\.rescue\.fixed cannot be weakened"):
        Fast(
            attack={"a": pgd()}, guard=Guard(attack=pgd(), rescue={"fixed": fixed}), ramp_epochs=1,
            craft_in_train_mode=False,
        )  # fmt: skip


@pytest.mark.parametrize("restarts", [1, 2])
def test_in_train_mode_every_pass_sees_the_whole_batch(batch, restarts):
    """Also where all samples are misclassified from the beginning, and would leave."""
    model, sizes = Model(norm=True), []
    model.features.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    with torch.no_grad():
        batch = batch._replace(label=(model(batch.image).logits.argmax(1) + 1) % 3)
    sizes.clear()
    attack = replace(pgd(), restarts=restarts)
    Adversarial(attack={"pgd": attack}, craft_in_train_mode=True)(model, model.loss, batch, 0)
    assert len(sizes) >= 4
    assert set(sizes) == {5}


LEAVING = {
    "worst iterate": pgd(last_iterate=False),
    "targets": replace(pgd(), objective=TargetedMargin(), targets=TopClasses(count=2)),
    "pieces": replace(pgd(), engine=Engine(fixed_batch=2)),
    "cascade": Cascade(attacks={"a": pgd(), "b": pgd()}),
}


@pytest.mark.parametrize("name", LEAVING)
def test_attacks_that_show_parts_of_the_batch_are_refused_in_train_mode(name):
    attack = {"a": LEAVING[name]}
    message = r"craft_in_train_mode=true uses the statistics of whole batches: training\.{} must be a gradient attack"
    for kind in (Adversarial, Mart, Fast):
        with pytest.raises(UserError, match=message.format(r"attack\.a")):
            kind(attack=attack, craft_in_train_mode=True)
        assert kind(attack=attack, craft_in_train_mode=False).attack_at(0) is attack["a"]
    with pytest.raises(UserError, match=message.format(r"guard\.rescue\.a")):
        Fast(attack={"b": pgd()}, guard=Guard(attack=pgd(), rescue=attack))


@pytest.mark.parametrize("option", ["clean_epochs", "ramp_epochs"])
def test_negative_epochs_are_refused_by_name(option):
    with pytest.raises(UserError, match=f"training.{option} must be >= 0"):
        Adversarial(attack={"pgd": pgd()}, **{option: -1})


@pytest.mark.parametrize("train_mode", [False, True])
def test_images_are_crafted_in_the_mode_that_is_asked_for(batch, train_mode):
    model = Model(norm=True)
    model.features[1].running_var.mul_(9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    regime = Adversarial(attack={"pgd": pgd()}, craft_in_train_mode=train_mode)
    image = regime.craft(model, batch, Moment(3, 0.0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    by_hand = {}
    for mode in (False, True):
        model.train(mode)
        noise = Linf(epsilon="16/255").uniform(batch.image, batch.index, 0, "pgd", 3, 0)
        current = (batch.image + noise).clamp(0, 1)
        for _ in range(3):
            current = current.detach().requires_grad_(True)
            F.cross_entropy(model(current).logits, batch.label, reduction="sum").backward()
            moved = current.detach() + 8 / 255 * current.grad.sign()
            current = moved.clamp(batch.image - 16 / 255, batch.image + 16 / 255).clamp(0, 1)
        by_hand[mode] = current
    assert not torch.allclose(by_hand[True], by_hand[False], atol=1e-3)
    assert torch.allclose(image, by_hand[train_mode], atol=1e-6)


def test_an_error_while_crafting_in_train_mode_leaves_the_model_as_it_was(batch):
    model = Model(norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle = model.loss.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Adversarial(attack={"pgd": pgd()}, craft_in_train_mode=True)(model, model.loss, batch, 0)
    handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
