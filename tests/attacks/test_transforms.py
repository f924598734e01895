"""DI's resizing and padding, and TI's smoothing, against loops over pixels."""

import math

import pytest
import torch

from robustfg.attacks import ResizeAndPad, Smoothing
from robustfg.attacks.batch.input_gradient import unchanged
from robustfg.attacks.rng.streams import Draws
from robustfg.core.errors import UserError

INDEX = torch.tensor([7, 3, 12, 0])
DRAWS = Draws(0, "a", 0, 0)


def images(size=(5, 7)):
    return torch.rand(4, 2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pixel(image, row, column):
    """Bilinear value of one channel, grey beyond the border."""
    value, top, left = 0.0, math.floor(row), math.floor(column)
    for r in (top, top + 1):
        for c in (left, left + 1):
            inside = 0 <= r < image.shape[0] and 0 <= c < image.shape[1]
            value += (1 - abs(row - r)) * (1 - abs(column - c)) * (image[r, c].item() if inside else 0.5)
    return value


def naive_resized(image, scale, across, down):
    """The image ``scale`` times as large, with the free space shared out by ``across`` and ``down`` in [0, 1]."""
    height, width = image.shape[1:]
    top, left = (1 - scale) * height * down, (1 - scale) * width * across
    out = torch.empty_like(image)
    for channel in range(image.shape[0]):
        for row in range(height):
            for column in range(width):
                place = (row + 0.5 - top) / scale - 0.5, (column + 0.5 - left) / scale - 0.5
                out[channel, row, column] = pixel(image[channel], *place)
    return out


@pytest.mark.parametrize(("smallest", "probability"), [(0.5, 1.0), (0.9, 1.0), (0.4, 0.5), (0.5, 0.0)])
def test_resizing_and_padding_equals_a_loop_over_pixels(smallest, probability):
    clean = images()
    shown = ResizeAndPad(smallest=smallest, probability=probability).drawn(DRAWS, INDEX, 3)(clean)
    chance, scale, across, down = DRAWS.uniforms(4, INDEX, "resize", 3).double().unbind(1)
    for sample in range(4):
        side = smallest + (1 - smallest) * scale[sample].item() if chance[sample] < probability else 1.0
        expected = naive_resized(clean[sample], side, across[sample].item(), down[sample].item())
        assert torch.allclose(shown[sample], expected, rtol=0, atol=1e-5)
    assert torch.allclose(shown, clean) == (probability == 0)


def test_the_share_of_changed_samples_is_the_probability_and_each_step_draws_anew():
    many, clean = torch.arange(2000), torch.zeros(2000, 1, 4, 4)
    transform = ResizeAndPad(smallest=0.5, probability=0.3)
    first, second = (transform.drawn(DRAWS, many, step)(clean).flatten(1).amax(1) > 1e-3 for step in (0, 1))
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert (first != second).any()


def test_the_change_is_differentiable():
    clean = images().requires_grad_()
    change = ResizeAndPad(smallest=0.5, probability=1.0).drawn(DRAWS, INDEX, 0)
    assert torch.autograd.gradcheck(change, (clean,))


@pytest.mark.parametrize(("size", "deviation"), [(3, 1.0), (5, 0.7), (1, 3.0)])
def test_smoothing_equals_a_loop_over_pixels(size, deviation):
    gradient, half = images() - 0.5, size // 2
    kernel = {
        (r, c): math.exp(-(r * r + c * c) / (2 * deviation**2))
        for r in range(-half, half + 1)
        for c in range(-half, half + 1)
    }
    total = sum(kernel.values())
    expected = torch.zeros_like(gradient)
    for row in range(5):
        for column in range(7):
            for (r, c), weight in kernel.items():
                if 0 <= row + r < 5 and 0 <= column + c < 7:
                    expected[:, :, row, column] += weight / total * gradient[:, :, row + r, column + c]
    assert torch.allclose(Smoothing(size=size, deviation=deviation)(gradient), expected, rtol=0, atol=1e-12)


def test_unchanged_shows_the_same_image():
    clean = images()
    assert unchanged(clean) is clean


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResizeAndPad(smallest=0.0), r"smallest must be in \(0, 1\], got 0.0"),
        (lambda: ResizeAndPad(probability=1.5), r"probability must be in \[0, 1\], got 1.5"),
        (lambda: Smoothing(size=4), "size must be odd and >= 1, got 4"),
        (lambda: Smoothing(deviation=0.0), "deviation must be > 0, got 0.0"),
    ],
)
def test_bad_options_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
