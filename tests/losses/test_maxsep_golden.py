"""The released ACCV 2020 code's numbers, in float64."""

import pytest
import torch
from released_maxsep import GOLDEN, MEAN, STD, Released, golden, named_parameters, released_loss

from robustfg.attacks import CrossEntropy, GradientAttack, Linf, Momentum, OnHead, Steepest, Summed
from robustfg.models.evidence import CHUNK, distances_by_chunk

pytestmark = pytest.mark.numeric

LABEL = golden("y")
ATTENTION = OnHead(objective=CrossEntropy(), head="attention")
OBJECTIVES = {"A": ATTENTION, "FR": Summed(objectives=[CrossEntropy(), ATTENTION])}
ATTACKS = ["fgsm1_8", "bim10_8", "pgd10_8", "mim10_8", "pgd10_2"]
HEADS = {"A": "attention", "FR": "prototype"}


def close(ours, theirs, tolerance=1e-9):
    return torch.allclose(ours, theirs.view_as(ours), rtol=0, atol=tolerance)


def test_forward_equals_the_released_code():
    model = Released()
    features = model.backbone((golden("x") - MEAN) / STD)
    output = model.loss(features)
    assert close(features, golden("base_features"))
    assert close(output.maps["attention"], golden("attention"))
    assert close(output.heads["prototype"], golden("logits"))
    assert close(output.heads["attention"], golden("att_logits"))
    assert close(model.loss.prototype(features, output.maps["attention"]).evidence, golden("similarity_weighted"))


def test_distances_equal_the_released_code():
    model = Released()
    head = model.loss.prototype
    latent = head.add_on(golden("base_features"))
    (found,) = (d for _, d in distances_by_chunk(latent.flatten(2).transpose(1, 2), head.prototypes.vectors))
    assert close(found.transpose(1, 2).reshape(6, 15, 4, 4), golden("distances"))
    assert close(found.amin(1), golden("min_distances"))
    of_classes = golden("distances").view(6, 5, 3, 4, 4).amin(2)
    assert close(model.loss(golden("base_features")).maps["class_distance"], of_classes)


@pytest.fixture(params=[1, 2**18], ids=["by sample", "at once"])
def backward(request, monkeypatch):
    """A model after the backward pass of the loss, its terms, and the gradient of the normalised images."""
    monkeypatch.setitem(CHUNK, "cpu", request.param)
    model = Released()
    normalised = ((golden("x") - MEAN) / STD).requires_grad_()
    terms = model.loss.loss(model.loss(model.backbone(normalised)), LABEL)
    terms["loss"].backward()
    return model, terms, normalised.grad


def test_every_term_and_the_images_gradient_equal_the_released_code(backward):
    _, terms, gradient = backward
    names = {
        "classification": "ce", "attention": "ce_att", "cluster": "cluster_att", "separation": "separation_att",
        "l1": "l1", "loss": "total",
    }  # fmt: skip
    for ours, theirs in names.items():
        assert terms[ours].item() == pytest.approx(float(GOLDEN[f"loss/{theirs}"]), abs=1e-9), ours
    assert close(gradient, golden("grad/x_normalised"))


def test_every_parameters_gradient_equals_the_released_code(backward):
    """The file's gradients were stored after its attacks, whose backward passes had been added to them."""
    model, _, _ = backward
    for name in ATTACKS:
        for branch in OBJECTIVES:
            add_gradients_of_attack(model, name, branch)
    for theirs, ours in named_parameters():
        assert close(model.loss.get_parameter(ours).grad, golden(f"grad/{theirs}")), ours
    for name, parameter in model.backbone.named_parameters():
        assert close(parameter.grad, golden(f"grad/features.features.{name}")), name


def add_gradients_of_attack(model, name, branch):
    """A released attack written out: its passes leave their gradients in the parameters."""
    epsilon, size, steps = GOLDEN[f"attack/{name}/params"].tolist()
    clean, velocity = golden("x"), 0.0
    random = f"attack/{name}/init" in GOLDEN.files
    current = started(clean, name, steps) if random else clean
    for _ in range(int(steps)):
        leaf = current.clone().requires_grad_()
        OBJECTIVES[branch](model(leaf), LABEL).mean().backward()
        scaled = leaf.grad / leaf.grad.abs().mean((1, 2, 3), keepdim=True)
        velocity = velocity + scaled if name.startswith("mim") else scaled
        current = current + size * velocity.sign()
        if random:
            current = clean + (current - clean).clamp(-epsilon, epsilon)
        current = current.clamp(0, 1)
    assert close(current, golden(f"attack/{name}/{branch}/adv"), 1e-12)


def started(clean, name, steps):
    """The released random start: FGSM leaves [0, 1] there, PGD does not."""
    start = clean + golden(f"attack/{name}/init")
    return start if steps == 1 else start.clamp(0, 1)


class Started(GradientAttack):
    """Starts where the released code's random numbers put it."""

    def random_image(self, batch, draws):
        return started(batch.clean, self.name, self.steps)


@pytest.mark.parametrize("branch", ["A", "FR"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_ends_where_the_released_one_does(name, branch):
    epsilon, size, steps = GOLDEN[f"attack/{name}/params"].tolist()
    rule = Momentum if name.startswith("mim") else Steepest
    attack = Started(
        name=name, threat=Linf(epsilon=epsilon), objective=OBJECTIVES[branch], step=rule(size=size), steps=int(steps),
        random_start=f"attack/{name}/init" in GOLDEN.files, last_iterate=True,
    )  # fmt: skip
    found = attack(Released(head=HEADS[branch]), golden("x"), LABEL)
    assert close(found, golden(f"attack/{name}/{branch}/adv"), 1e-7)


def test_the_option_file_is_the_released_code_where_the_golden_numbers_cannot_tell():
    module = released_loss()
    assert module.attention_epsilon == 0  # the file has no dead map
    assert module.attention.dropout_in_maps  # and was made in eval mode
    assert not module.prototype.prototypes.clamped
    assert not module.push_by_evidence  # nor is there a push in it
