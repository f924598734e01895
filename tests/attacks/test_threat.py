import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustfg.attacks import L1, L2, Linf
from robustfg.attacks.threats.base import pixel_value, step_length
from robustfg.core.errors import UserError

BOTH = pytest.mark.parametrize("kind", [Linf, L2])
GEOMETRY = {
    "seed": st.integers(0, 2**32 - 1),
    "radius": st.floats(0, 4, allow_subnormal=False) | st.sampled_from([1e-10, 1e-5]),
    "spread": st.sampled_from([1e-9, 1e-4, 0.01, 1.0, 30.0]),
    "shape": st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)),
}


def sample_points(seed, spread, shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(shape, generator=generator, dtype=dtype)
    clean[torch.rand(shape, generator=generator) < 0.2] = 0.0
    clean[torch.rand(shape, generator=generator) < 0.2] = 1.0
    return clean, clean + spread * torch.randn(shape, generator=generator, dtype=dtype)


def ball(kind, radius):
    """A pixel value cannot change by more than the whole range."""
    return kind(epsilon=min(radius, 1.0) if kind is Linf else radius)


def naive_projection(kind, image, clean, radius):
    """One sample at a time, in Python floats."""
    projected = []
    for point, center in zip(image, clean, strict=True):
        change = [x - c for x, c in zip(point.flatten().tolist(), center.flatten().tolist(), strict=True)]
        if kind is Linf:
            change = [max(-radius, min(radius, value)) for value in change]
        else:
            length = math.sqrt(math.fsum(value * value for value in change))
            change = [value * radius / length for value in change] if length > radius else change
        moved = [min(1.0, max(0.0, c + d)) for c, d in zip(center.flatten().tolist(), change, strict=True)]
        projected.append(torch.tensor(moved, dtype=torch.float64).view_as(center))
    return torch.stack(projected)


def naive_size(kind, perturbation):
    values = perturbation.double().flatten().tolist()
    return max(map(abs, values)) if kind is Linf else math.sqrt(math.fsum(value * value for value in values))


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (0.03, 0.03), (" 8 / 255 ", 8 / 255), ("0.5", 0.5), (0, 0.0), ("1e-3", 0.001), (2, 2.0)],
)
def test_lengths_are_read_as_fractions_or_decimals(text, value):
    assert pixel_value(text, "epsilon") == value


@pytest.mark.parametrize("text", ["eight", "", "8/0", "8//255", "8 255", "nan", "inf", float("nan"), "1e999", None])
def test_a_length_that_is_no_number_is_refused_by_the_name_of_its_option(text):
    with pytest.raises(UserError, match="linf epsilon must be a number such as 8/255"):
        pixel_value(text, "linf epsilon")


@pytest.mark.parametrize("text", ["-8/255", -0.1, "-1e-9"])
def test_a_negative_length_is_refused_by_the_name_of_its_option(text):
    with pytest.raises(UserError, match="linf epsilon must be >= 0"):
        pixel_value(text, "linf epsilon")


@pytest.mark.parametrize(("kind", "option"), [(Linf, "linf epsilon"), (L2, "l2 epsilon")])
def test_a_bad_epsilon_is_refused_when_the_threat_is_made(kind, option):
    with pytest.raises(UserError, match=option):
        kind(epsilon="8:255")


@pytest.mark.parametrize(
    ("text", "length"),
    [("eps", 0.6), ("eps/4", 0.15), ("2.5*eps", 1.5), (" 2.5 * eps / 10 ", 0.15), ("2/255", 2 / 255), (0.01, 0.01)],
)
def test_step_sizes_are_pixels_or_shares_of_epsilon(text, length):
    assert step_length(text, 0.6) == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["epsilon/4", "eps/0", "1.2.3*eps", "./2*eps", "-eps", "eps*2", "2eps", "-1/255", "", None]
)
def test_a_bad_step_size_is_refused_by_name(text):
    with pytest.raises(UserError, match="step size"):
        step_length(text, 0.6)


@BOTH
@settings(deadline=None, max_examples=60)
@given(**GEOMETRY)
def test_projection_equals_a_naive_one_per_sample(kind, seed, radius, spread, shape):
    clean, image = sample_points(seed, spread, shape)
    projected = ball(kind, radius).project(image, clean)
    assert torch.allclose(
        projected, naive_projection(kind, image, clean, ball(kind, radius).radius), rtol=0, atol=1e-12
    )


@BOTH
@settings(deadline=None, max_examples=60)
@given(**GEOMETRY, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_projected_images_lie_in_the_ball_and_the_box_and_stay_when_projected_again(
    kind, seed, radius, spread, shape, dtype
):
    threat = ball(kind, radius)
    clean, image = sample_points(seed, spread, shape, dtype)
    projected = threat.project(image, clean)
    assert projected.dtype == dtype
    assert projected.min() >= 0
    assert projected.max() <= 1
    for moved, center in zip(projected, clean, strict=True):
        assert naive_size(kind, moved.double() - center.double()) <= radius + 1e-6
    threat.check(projected, clean)
    assert torch.allclose(threat.project(projected, clean), projected, rtol=0, atol=1e-6)


@BOTH
@settings(deadline=None, max_examples=60)
@given(**GEOMETRY)
def test_points_inside_the_ball_and_the_box_are_not_moved(kind, seed, radius, spread, shape):
    clean, image = sample_points(seed, spread, shape)
    image = image.clamp(0, 1)
    inside = torch.tensor(
        [
            naive_size(kind, moved - center) < ball(kind, radius).radius - 1e-9
            for moved, center in zip(image, clean, strict=True)
        ]
    )
    projected = ball(kind, radius).project(image, clean)
    assert torch.allclose(projected[inside], image[inside], rtol=0, atol=1e-15)


@pytest.mark.parametrize("epsilon", [1, 3, 5, 12])
@pytest.mark.parametrize("size", [16, 224])
def test_l1_projection_keeps_float32_images_in_the_ball(epsilon, size):
    """Rounding every coordinate to float32 adds up to more than the slack of the check."""
    generator = torch.Generator().manual_seed(0)
    clean, image = torch.rand(2, 2, 3, size, size, generator=generator)
    threat = L1(epsilon=epsilon)
    projected = threat.project(image, clean)
    threat.check(projected, clean)
    reached = threat.size(projected.double() - clean.double())
    assert (reached > epsilon * (1 - 1e-5)).all()


def test_l2_projection_keeps_a_large_float32_image_in_the_ball():
    """A float32 norm over 3x448x448 values is short by 5e-6, more than the slack of the check."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 3, 448, 448, generator=generator) * 0.6 + 0.2
    threat = L2(epsilon=5)
    moved = threat.project(clean + torch.randn(clean.shape, generator=generator), clean)
    length = np.linalg.norm(moved.numpy().astype(np.float64) - clean.numpy().astype(np.float64))
    assert length == pytest.approx(5, abs=1e-6)


@BOTH
@settings(deadline=None, max_examples=40)
@given(seed=GEOMETRY["seed"], shape=GEOMETRY["shape"])
def test_the_steepest_step_has_norm_one_and_no_competitor_beats_it(kind, seed, shape):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    step = kind(epsilon=1).steepest(gradient)
    rivals = torch.randn(200, *shape, generator=generator, dtype=torch.float64)
    rivals[100:] = gradient + 0.1 * rivals[100:]
    for sample in range(len(gradient)):
        assert naive_size(kind, step[sample]) == pytest.approx(1, abs=1e-12)
        gain = (step[sample] * gradient[sample]).sum()
        dual = gradient[sample].abs().sum() if kind is Linf else gradient[sample].square().sum().sqrt()
        assert gain == pytest.approx(float(dual), rel=1e-12)
        for rival in rivals[:, sample]:
            assert (rival / naive_size(kind, rival) * gradient[sample]).sum() <= gain + 1e-12


@BOTH
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-24, 1e-20, 1.0, 1e25])
def test_the_length_of_a_step_does_not_depend_on_the_size_of_the_gradient(kind, scale):
    """Saturated cross-entropy leaves gradients whose squares vanish in float32."""
    gradient = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    step, expected = (kind(epsilon=1).steepest(values) for values in (gradient * scale, gradient))
    assert torch.allclose(step, expected, rtol=1e-5, atol=0)


@BOTH
def test_a_zero_gradient_gives_no_step(kind):
    assert torch.equal(kind(epsilon=1).steepest(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


@BOTH
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), radius=st.floats(0, 4), shape=GEOMETRY["shape"])
def test_uniform_draws_lie_in_the_ball(kind, seed, radius, shape):
    threat = ball(kind, radius)
    noise = threat.uniform(torch.zeros(shape), torch.arange(shape[0]), seed, "attack")
    assert noise.shape == shape
    assert all(naive_size(kind, sample) <= radius + 1e-6 for sample in noise)


def test_linf_draws_are_uniform_in_every_pixel():
    noise = Linf(epsilon="8/255").uniform(torch.zeros(2000, 1, 2, 2), torch.arange(2000), 0).flatten(1) * 255 / 8
    for pixel in noise.T:
        assert stats.kstest(pixel.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 1), (3, 4, 4)])
def test_l2_draws_have_a_radius_whose_dth_power_is_uniform(shape):
    dimension = math.prod(shape)
    noise = L2(epsilon=0.5).uniform(torch.zeros(2000, *shape), torch.arange(2000), 0)
    share = np.linalg.norm(noise.double().flatten(1).numpy(), axis=1) / 0.5
    assert stats.kstest(share**dimension, "uniform").pvalue > 1e-3


def test_l2_draws_point_everywhere_alike():
    """On the sphere in three dimensions every coordinate is uniform in [-1, 1] (Archimedes)."""
    noise = L2(epsilon=0.5).uniform(torch.zeros(2000, 3, 1, 1), torch.arange(2000), 0).flatten(1).numpy()
    direction = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    for axis in range(3):
        assert stats.kstest(direction[:, axis], "uniform", args=(-1, 2)).pvalue > 1e-3


@BOTH
def test_uniform_draws_belong_to_the_sample_and_the_key(kind):
    threat, clean, index = kind(epsilon=0.5), torch.zeros(3, 1, 2, 2), torch.tensor([4, 1, 9])
    noise = threat.uniform(clean, index, 0, "a")
    assert torch.equal(threat.uniform(clean[:1], index[2:], 0, "a"), noise[2:])
    other = threat.uniform(clean, index, 1, "a")
    assert not torch.isclose(other, noise).any()
    assert not torch.isclose(threat.size(other), threat.size(noise)).any()
    assert threat.uniform(clean.double(), index, 0, "a").dtype == torch.float64


@BOTH
@settings(deadline=None, max_examples=30)
@given(seed=GEOMETRY["seed"], shape=GEOMETRY["shape"])
def test_size_equals_a_naive_norm_in_float64(kind, seed, shape):
    perturbation = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    size = kind(epsilon=1).size(perturbation)
    assert size.dtype == torch.float64
    assert size.tolist() == pytest.approx([naive_size(kind, sample) for sample in perturbation], rel=1e-12)


@BOTH
def test_the_check_allows_a_slack_of_a_millionth_and_no_more(kind):
    clean = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    image = clean.clone()
    image[1, 0, 0, 1] += 0.1 + 0.9e-6
    kind(epsilon=0.1).check(image, clean)
    image[1, 0, 0, 1] += 0.2e-6
    with pytest.raises(AssertionError, match=kind.norm):
        kind(epsilon=0.1).check(image, clean)


@BOTH
@pytest.mark.parametrize(("border", "value"), [(0.0, -1e-7), (1.0, 1 + 1e-6), (0.5, float("nan"))])
def test_the_check_refuses_an_image_outside_the_box(kind, border, value):
    clean = torch.full((1, 1, 2, 2), border)
    image = clean.clone()
    image[0, 0, 1, 1] = value
    with pytest.raises(AssertionError):
        kind(epsilon=0.1).check(image, clean)
