"""What every attack that a user can choose by name leaves as it was: the model, the random numbers, the modes."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from every_preset import EVERY, Alarm, Tiny, images, predicted, preset

EVERY_PRESET = pytest.mark.parametrize("name", EVERY)
pytestmark = pytest.mark.filterwarnings("ignore:images of .* lie outside", "ignore:Creating a tensor from a list")


def trained(alarm=None):
    """A model in the middle of training: one part frozen by its user, gradients waiting for the optimiser."""
    model = Tiny(alarm=alarm).train()
    model.norm.eval()
    model.norm.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    return model


def state(model):
    return {
        "modes": [module.training for module in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [id(parameter.grad) for parameter in model.parameters()],
        "gradient values": [parameter.grad.tolist() for parameter in model.parameters()],
        "weights and statistics": {key: value.tolist() for key, value in model.state_dict().items()},
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "python": random.getstate(),
        "autograd": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
    }


@EVERY_PRESET
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_model_and_random_numbers_are_left_as_they_were_in_every_mode_of_autograd(name, mode):
    model, clean = trained(), images()
    label = predicted(model, clean)
    expected = preset(name)(model, clean, label)
    torch.rand(3), np.random.rand(3), random.random()  # what is found does not depend on the caller's numbers
    before = state(model)
    with mode():
        image = images()
        assert image.is_inference() == (mode is torch.inference_mode)
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        adversarial = preset(name)(model, image, label.clone())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == inside
    assert state(model) == before
    assert torch.equal(adversarial, expected)
    assert torch.equal(image, clean)


@EVERY_PRESET
@pytest.mark.parametrize("call", [1, 2, 5])
def test_all_is_given_back_when_the_user_interrupts_a_forward_pass(name, call):
    alarm = Alarm(call)
    model, image = trained(alarm), images()
    label, before = predicted(model, image), state(model)
    interrupted = False
    try:
        preset(name)(model, image, label)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted == (alarm.calls >= call)
    assert state(model) == before
