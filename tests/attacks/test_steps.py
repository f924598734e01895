"""Nesterov's look-ahead (NI-FGSM, Lin et al. 2020) and FGSM by its short name."""

import pytest
import torch
from small import INDEX, Linear, Net, images

from robustfg.attacks import FGSM, L1, L2, CrossEntropy, GradientAttack, Linf, Momentum, Nesterov, Patch

LABELS = torch.zeros(6, dtype=torch.int64)


def ni(epsilon=0.1, size="eps/4", steps=8, decay=1.0, **options):
    rule = Nesterov(size=size, decay=decay)
    return GradientAttack(threat=Linf(epsilon=epsilon), step=rule, steps=steps, objective=CrossEntropy(), **options)


def naive(model, clean, label, epsilon, alpha, steps, decay):
    """The paper's algorithm for one sample, with the released code's mean absolute value for the norm."""
    image, velocity = clean, torch.zeros_like(clean)
    for _ in range(steps):
        ahead = (image + alpha * decay * velocity).clamp(0, 1).requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(ahead), label)
        (gradient,) = torch.autograd.grad(loss, ahead)
        velocity = decay * velocity + gradient / gradient.abs().mean()
        image = (image + alpha * velocity.sign()).clamp(clean - epsilon, clean + epsilon).clamp(0, 1)
    return image


@pytest.mark.parametrize("decay", [1.0, 0.6])
@pytest.mark.parametrize("last_iterate", [True, False])
def test_nesterov_equals_a_naive_loop(decay, last_iterate):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    found = ni(0.02, decay=decay, last_iterate=last_iterate)(model, clean, label, INDEX)
    for sample in range(6):
        one = slice(sample, sample + 1)
        expected = naive(model, clean[one], label[one], 0.02, 0.005, 8, decay)
        assert torch.allclose(found[one], expected, rtol=0, atol=1e-10)
    plain = GradientAttack(
        threat=Linf(epsilon=0.02), step=Momentum(size="eps/4", decay=decay), steps=8, objective=CrossEntropy(),
        last_iterate=True,
    )  # fmt: skip
    assert not torch.allclose(plain(model, clean, label, INDEX), found, atol=1e-4)


@pytest.mark.parametrize("random_start", [True, False])
def test_what_lies_ahead_of_nesterov_is_outside_the_ball_and_no_candidate(random_start):
    model, clean, seen = Linear(bias=500.0), images(), []

    def watched(image):
        seen.append(image.detach().clone())
        return model(image)

    attack = ni(0.05, random_start=random_start)
    (attempt,) = attack.attempts(watched, clean, LABELS, INDEX)
    assert max((image - clean).abs().max() for image in seen) > 0.06
    assert len(seen) == attack.passes == attempt.forwards[0] == 9
    assert torch.equal(attempt.image, seen[-1])  # the last iterate, the only one that was looked at
    attack.threat.check(attempt.image, clean)


def test_nesterov_finds_what_only_the_ball_allows():
    """Images ahead are wrong, those in the ball right: nothing is claimed."""
    model, clean = Linear(), images()
    score = model.score(clean)
    least = (score / model.weight.abs().sum()).min().item()
    (attempt,) = ni(0.9 * least, size="eps/2").attempts(model, clean, LABELS, INDEX)
    assert (attempt.margin > 0).all()
    assert (attempt.first_success == -1).all()
    assert torch.allclose(model.score(attempt.image), attempt.margin, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threat", [L2(epsilon=0.5), L1(epsilon=2, share=0.1), Patch(epsilon=0.25, place=(0, 0))])
def test_ahead_is_as_long_as_a_step_where_all_values_are_remembered_alike(threat):
    generator = torch.Generator().manual_seed(3)
    memory = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64).sign() * torch.tensor(2.0).double()
    image = torch.full_like(memory, 0.5)
    ahead = Nesterov(size=0.01, decay=0.5).ahead(image, memory, threat) - image
    assert torch.allclose(ahead, 0.01 * 0.5 * 2 * threat.steepest(memory), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_by_its_short_name_is_one_step_to_the_border_against_the_weights(norm):
    model, clean = Linear(), images(low=0.4, high=0.6)
    found = FGSM(epsilon="0.1", norm=norm)(model, clean, LABELS, INDEX)
    weight = model.weight.detach()
    step = weight.sign() if norm == "linf" else weight / weight.norm()
    assert torch.allclose(found, clean - 0.1 * step, rtol=0, atol=1e-9)
