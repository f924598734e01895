import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from robustfg.attacks import L2, CrossEntropy, Linf, Margin, UniversalPerturbation
from robustfg.attacks.composed.universal import fit
from robustfg.core.errors import UserError


class Linear(nn.Module):
    """Two logits, +s/2 and -s/2 of a linear score of the image."""

    def __init__(self, bias=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, 4, generator=generator, dtype=torch.float64))
        self.drop = nn.Dropout(0.5)
        self.bias = bias

    def forward(self, image):
        score = self.drop((image * self.weight).flatten(1)).sum(1) + self.bias
        return torch.stack([score, -score], 1) / 2


def images(count=40, seed=0, low=0.2, high=0.8):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)


def batches(count=40, size=7, seed=0, label=0):
    image = images(count, seed)
    return [(part, torch.full((len(part),), label)) for part in image.split(size)]


# --- Learning


@pytest.mark.parametrize("threat", [Linf(epsilon=0.1), L2(epsilon=0.3)])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("objective", [None, Margin()])
def test_for_one_class_of_a_linear_model_it_is_the_corner_or_the_direction_against_the_weights(
    threat, label, objective
):
    model = Linear()
    away = model.weight.detach() * (1 if label else -1)
    expected = 0.1 * away.sign() if threat.norm == "linf" else 0.3 * away / away.norm()
    found = fit(model, batches(label=label), threat=threat, objective=objective, step="eps")
    assert found.shape == (1, 3, 4, 4)
    assert torch.allclose(found[0], expected, rtol=0, atol=1e-9)


def naive_fit(weight, parts, epsilon, length, epochs, cap):
    """Clipped cross-entropy of the linear model, l-inf, in numpy."""
    change = np.zeros(weight.shape)
    for epoch in range(epochs):
        for image, label in parts:
            gradient = np.zeros_like(change)
            for pixels, true in zip(image.numpy(), label.tolist(), strict=True):
                shown = pixels + change
                score = (np.clip(shown, 0, 1) * weight).sum() * (1 - 2 * true)  # lead of the true class
                if np.log1p(np.exp(-score)) < cap:
                    slope = -(1 - 2 * true) * weight / (1 + np.exp(score))
                    gradient += np.where((shown > 0) & (shown < 1), slope, 0)
            change = np.clip(change + length * (1 - epoch / epochs) * np.sign(gradient), -epsilon, epsilon)
    return change


@pytest.mark.parametrize("cap", [9.0, 1.0])
def test_the_steps_are_those_of_a_naive_loop_on_the_clipped_objective(cap):
    model, generator = Linear(), torch.Generator().manual_seed(1)
    parts = [(image, torch.randint(2, (len(image),), generator=generator)) for image in images(low=0, high=1).split(7)]
    found = fit(model.eval(), parts, threat=Linf(epsilon=0.1), step=0.03, epochs=3, cap=cap)
    expected = naive_fit(model.weight.detach().numpy(), parts, 0.1, 0.03, 3, cap)
    assert np.allclose(found[0].numpy(), expected, rtol=0, atol=1e-12)


def test_the_cap_changes_what_is_learned():
    """So that the test above sees it."""
    model, generator = Linear(), torch.Generator().manual_seed(1)
    parts = [(image, torch.randint(2, (len(image),), generator=generator)) for image in images().split(7)]
    low, high = (fit(model, parts, threat=Linf(epsilon=0.1), step=0.03, cap=cap) for cap in (1.0, 9.0))
    assert not torch.equal(low, high)


def test_the_model_is_given_back_and_the_images_are_left_alone():
    model, parts = Linear().train(), batches()
    before = [image.clone() for image, _ in parts]
    with torch.inference_mode():
        fit(model, parts, threat=Linf(epsilon=0.1), epochs=1)
    assert model.training
    assert model.drop.training
    assert model.weight.requires_grad
    assert model.weight.grad is None
    assert all(torch.equal(image, old) for (image, _), old in zip(parts, before, strict=True))


def test_what_was_learned_on_some_images_fools_the_model_on_others():
    model = Linear()
    model.bias = -float(model(images(400, 3))[:, 0].detach().mean() * 2)
    label = (model(images()).argmax(1)).long()
    keep = label == 0  # one class, as one perturbation cannot fool both sides of a linear model
    change = fit(model, [(images()[keep], label[keep])], threat=Linf(epsilon=0.1))
    fresh = images(200, 9)
    fresh = fresh[model(fresh).argmax(1) == 0]
    attack = UniversalPerturbation(threat=Linf(epsilon=0.1), perturbation=change)
    zero = torch.zeros(len(fresh), dtype=torch.int64)
    assert len(fresh) > 50
    # The best for a linear model is known: against the weights everywhere.
    best = (fresh - 0.1 * model.weight.detach().sign()).clamp(0, 1)
    assert torch.allclose(attack(model, fresh, zero), best, rtol=0, atol=1e-9)
    assert (model(best).argmax(1) == 1).double().mean() > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs must be >= 1, got 0"), ({"step": "eps/0"}, "step size must be such as")],
)
def test_bad_settings_of_learning_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        fit(Linear(), batches(), threat=Linf(epsilon=0.1), **options)


def test_no_images_to_learn_on_are_told():
    with pytest.raises(UserError, match="batches held no images"):
        fit(Linear(), [], threat=Linf(epsilon=0.1))


# --- Using


def change_of(size=0.1, shape=(1, 3, 4, 4)):
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).sign()


def test_every_image_gets_the_same_change_cut_to_pixels_at_one_forward_pass():
    clean, label = images(9, low=0, high=1), torch.zeros(9, dtype=torch.int64)
    attack = UniversalPerturbation(threat=Linf(epsilon=0.1), perturbation=change_of())
    calls = []
    model = Linear().eval()
    (attempt,) = attack.attempts(lambda image: calls.append(len(image)) or model(image), clean, label)
    expected = (clean + change_of()).clamp(0, 1)
    assert calls == [9]
    assert torch.allclose(attempt.image, expected, rtol=0, atol=1e-12)
    assert attempt.forwards.tolist() == [1] * 9
    assert attempt.backwards.tolist() == [0] * 9
    logits = model(expected).detach()
    assert torch.allclose(attempt.margin, logits[:, 0] - logits[:, 1], rtol=0, atol=1e-9)


def test_a_file_and_its_tensor_are_the_same_attack(tmp_path):
    path = tmp_path / "universal.pt"
    torch.save(change_of().float(), path)
    from_file = UniversalPerturbation(threat=Linf(epsilon="26/255"), path=str(path))
    from_tensor = UniversalPerturbation(threat=Linf(epsilon="26/255"), perturbation=change_of().float())
    clean, label = images(5).float(), torch.zeros(5, dtype=torch.int64)
    model = Linear().float()
    assert torch.equal(from_file(model, clean, label), from_tensor(model, clean, label))
    described = json.loads(json.dumps(from_file.describe()))
    assert described == from_tensor.describe()
    assert described["perturbation_sha256"] == hashlib.sha256(change_of().float().numpy().tobytes()).hexdigest()
    assert (described["norm"], described["epsilon"], described["steps"]) == ("linf", "26/255", 1)


def test_a_perturbation_beyond_epsilon_is_refused():
    with pytest.raises(UserError, match="has linf size 0.1, more than epsilon 8/255; learn it within that epsilon"):
        UniversalPerturbation(threat=Linf(epsilon="8/255"), perturbation=change_of())


def test_a_perturbation_for_other_images_is_refused():
    attack = UniversalPerturbation(threat=Linf(epsilon=0.1), perturbation=change_of(shape=(1, 3, 5, 4)))
    with pytest.raises(UserError, match=r"learned for images \(3, 5, 4\), not \(3, 4, 4\)"):
        attack(Linear(), images(), torch.zeros(40, dtype=torch.int64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no universal perturbation at"),
        (b"not torch", "is no file that torch.save wrote"),
        ([1, 2], "does not hold one finite perturbation"),
        (torch.zeros(2, 3, 4, 4), "does not hold one finite perturbation"),
        (torch.full((1, 3, 4, 4), float("nan")), "does not hold one finite perturbation"),
        (CrossEntropy(), "is no file that torch.save wrote"),  # would run code when loaded
    ],
)
def test_missing_and_damaged_files_are_told(tmp_path, content, message):
    path = tmp_path / "universal.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        UniversalPerturbation(threat=Linf(epsilon=0.1), path=str(path))


def test_it_needs_a_perturbation_and_one_restart():
    with pytest.raises(UserError, match="path must name the file"):
        UniversalPerturbation(threat=Linf(epsilon=0.1))
    with pytest.raises(UserError, match="restarts of a fixed perturbation find nothing new, got 2"):
        UniversalPerturbation(threat=Linf(epsilon=0.1), perturbation=change_of(), restarts=2)
