import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from robustfg.attacks import (
    APGD,
    FAB,
    Cascade,
    EstimatedGradient,
    GradientAttack,
    Linf,
    Rigid,
    Spatial,
    Square,
    UniversalPerturbation,
)
from robustfg.attacks.black_box.spatial import turned
from robustfg.core.errors import UserError

INDEX = torch.tensor([7, 3, 12, 0, 99, 41])


def images(count=6, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)


def pose(count, degrees=0.0, down=0.0, right=0.0):
    shift = torch.tensor([[down, right]], dtype=torch.float64)
    return torch.full((count,), degrees, dtype=torch.float64), shift.expand(count, 2)


class Corner(torch.nn.Module):
    """Class 1 where the brightest pixel is above the middle row."""

    def forward(self, image):
        half = image.shape[2] // 2
        upper, lower = image[:, :, :half].amax((1, 2, 3)), image[:, :, half:].amax((1, 2, 3))
        return torch.stack([lower, upper], 1)


# --- The pose


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("size", [7, 8])
def test_quarter_turns_are_counter_clockwise_and_exact(quarters, size):
    clean = images(2, 3, size, size)
    found = turned(clean, *pose(2, 90 * quarters))
    assert torch.allclose(found, torch.rot90(clean, quarters, (2, 3)), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(down=st.integers(-4, 4), right=st.integers(-4, 4), height=st.integers(3, 9), width=st.integers(3, 9))
def test_whole_shifts_move_pixels_down_and_right_and_black_comes_in(down, right, height, width):
    clean = images(2, 3, height, width)
    expected = torch.zeros_like(clean)
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                expected[:, :, i, j] = clean[:, :, i - down, j - right]
    assert torch.allclose(turned(clean, *pose(2, 0, down, right)), expected, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    degrees=st.floats(-180, 180), down=st.floats(-3, 3), right=st.floats(-3, 3),
    height=st.integers(4, 9), width=st.integers(4, 9), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_pose_is_what_scipy_makes_of_it(degrees, down, right, height, width, seed):
    """Bilinear, zero beyond the border; every sample its own pose."""
    clean = images(2, 2, height, width, seed)
    angle, shift = pose(2, degrees, down, right)
    found = turned(clean, torch.stack([angle[0], -angle[0]]), torch.stack([shift[0], -shift[0]]))
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    for sample, sign in ((0, 1), (1, -1)):
        a = math.radians(sign * degrees)
        back = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])  # (down, right) -> (down, right)
        offset = middle - back @ (middle + sign * np.array([down, right]))
        for channel in range(2):
            expected = ndimage.affine_transform(
                clean[sample, channel].numpy(), back, offset, order=1, mode="grid-constant"
            )
            assert np.allclose(found[sample, channel].numpy(), expected, rtol=0, atol=1e-9)


def test_the_pose_is_differentiable_in_image_angle_and_shift():
    clean = images(2, 1, 5, 6).clamp(0.05, 0.95).requires_grad_()
    degrees, shift = torch.tensor([11.0, -23.0]).double().requires_grad_(), torch.tensor([[0.3, 1.2], [-0.7, 0.4]])
    shift = shift.double().requires_grad_()
    assert torch.autograd.gradcheck(turned, (clean, degrees, shift), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posed_images_stay_pixels(dtype):
    found = turned(
        torch.ones(50, 3, 9, 7, dtype=dtype), torch.linspace(-30, 30, 50).to(dtype), torch.rand(50, 2).to(dtype)
    )
    assert found.dtype == dtype
    assert found.min() >= 0
    assert found.max() <= 1


# --- The search


def test_the_grid_is_that_of_the_paper():
    attack = Spatial()
    seen = []

    def model(image):
        seen.append(image)
        return torch.tensor([[2.0, 0.0]]).double().expand(len(image), 2)

    clean = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    clean[0, 0, 16, 24] = 1.0
    next(attack.attempts(model, clean, torch.zeros(1).long(), INDEX[:1]))
    expected = {
        (angle, down, right)
        for angle in np.linspace(-30, 30, 31)
        for down in (-3, -1.5, 0, 1.5, 3)
        for right in (-3, -1.5, 0, 1.5, 3)
    }
    images = torch.cat([turned(clean, *pose(1, *place)) for place in expected])
    assert len(seen) == 775
    exactly = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(torch.cat(seen).flatten(1), images.flatten(1), compute_mode=exactly)
    assert distance.amin(0).max() < 1e-9  # every pose of the paper was looked at
    assert distance.amin(1).max() < 1e-9  # and no other


def test_the_worst_pose_of_the_grid_is_found_and_counts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).double()
    clean = images()
    label = torch.zeros(6, dtype=torch.int64)
    model[1].bias.data[0] += 5  # so that no pose fools it
    attack = Spatial(threat=Rigid(degrees=20, shift="1/8"), angles=5, shifts=3)
    (attempt,) = attack.attempts(model, clean, label, INDEX)
    worst = torch.full((6,), float("inf")).double()
    for degrees in (-20, -10, 0, 10, 20):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                logits = model(turned(clean, *pose(6, degrees, down, right))).detach()
                worst = torch.minimum(worst, logits[:, 0] - logits[:, 1:].amax(1))
    assert (worst > 0).all()
    assert torch.allclose(attempt.margin, worst, rtol=0, atol=1e-9)
    logits = model(attempt.image).detach()
    assert torch.allclose(logits[:, 0] - logits[:, 1:].amax(1), worst, rtol=0, atol=1e-9)
    assert attempt.forwards.tolist() == [45] * 6 == [attack.passes] * 6
    assert attempt.backwards.tolist() == [0] * 6


def test_fooled_samples_leave_and_poses_are_counted_by_the_model_itself():
    counts = Counter()
    clean = torch.zeros(4, 1, 16, 16, dtype=torch.float64)
    for sample in range(4):
        clean[sample, 0, sample + 4, 5] = (sample + 1) / 4  # other brightness, farther from or nearer to the middle

    def model(image):
        counts.update(((image.amax((1, 2, 3)) * 4).round().long() - 1).tolist())
        return Corner()(image)

    attack = Spatial(threat=Rigid(degrees=0, shift="2/16"), angles=1, shifts=5)
    (attempt,) = attack.attempts(model, clean, torch.ones(4, dtype=torch.int64), torch.arange(4))
    fooled = (attempt.margin < 0).tolist()
    assert fooled == [False, False, True, True]  # a shift by two pixels at most carries rows 6 and 7 below the middle
    assert attempt.forwards.tolist() == [counts[sample] for sample in range(4)]
    assert attempt.forwards.tolist()[:2] == [25, 25]
    assert max(attempt.forwards.tolist()[2:]) <= 4  # the four corners of the grid come first
    assert [first + 1 for first in attempt.first_success.tolist()[2:]] == attempt.forwards.tolist()[2:]


def test_random_poses_lie_within_the_limits_and_belong_to_the_sample():
    """A single bright pixel tells where it was carried."""
    clean = torch.zeros(6, 1, 41, 41, dtype=torch.float64)
    clean[:, 0, 20, 20] = 1.0
    seen = []

    def model(image):
        seen.append(image.clone())
        return torch.tensor([[2.0, 0.0]]).double().expand(len(image), 2)

    attack = Spatial(threat=Rigid(degrees=0, shift="4/41"), tries=60)
    next(attack.attempts(model, clean, torch.zeros(6).long(), INDEX))
    weight = torch.stack(seen) / torch.stack(seen).sum((3, 4), keepdim=True)
    place = torch.arange(41).double() - 20
    down, right = (weight.sum(4) * place).sum(3).flatten(), (weight.sum(3) * place).sum(3).flatten()
    assert max(down.abs().max(), right.abs().max()) <= 4 + 1e-9
    assert min(down.max(), right.max(), -down.min(), -right.min()) > 3.5
    assert len({round(value, 6) for value in down.tolist()}) == 360  # other samples, other tries, other poses
    first = torch.stack(seen)
    seen.clear()
    order = [3, 5, 0, 1, 4, 2]
    next(attack.attempts(model, clean[order], torch.zeros(6).long(), INDEX[order]))
    assert torch.equal(torch.stack(seen), first[:, order])


def test_restarts_of_random_poses_are_others():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).double()
    model[1].bias.data[0] += 5
    attempts = list(Spatial(tries=3, restarts=2).attempts(model, images(), torch.zeros(6).long(), INDEX))
    assert (attempts[0].image != attempts[1].image).flatten(1).any(1).all()


# --- The threat model


def test_its_size_is_zero_and_pixels_may_not_be_changed_in_it():
    threat, clean = Rigid(), images()
    assert threat.size(clean).tolist() == [0.0] * 6
    assert threat.radius == 0
    uses = threat.project, threat.steepest, threat.uniform
    for use, arguments in zip(uses, [(clean, clean), (clean,), (clean, INDEX)], strict=True):
        with pytest.raises(UserError, match="attack it with Spatial"):
            use(*arguments)


@pytest.mark.parametrize("kind", [APGD, EstimatedGradient, FAB, GradientAttack, Square, UniversalPerturbation])
def test_attacks_that_change_pixels_refuse_it_by_name(kind):
    options = {"perturbation": images()[:1]} if kind is UniversalPerturbation else {}
    with pytest.raises(UserError, match="threat rigid allows turned images only, which Spatial tries, not"):
        kind(threat=Rigid(), **options)
    with pytest.raises(UserError, match="threat rigid"):
        Cascade(attacks={"a": GradientAttack(threat=Linf(epsilon=0.1))}).within(Rigid())


def test_an_attack_that_turns_images_refuses_a_ball():
    with pytest.raises(UserError, match="threat must be Rigid, got linf"):
        Spatial(threat=Linf(epsilon=0.1))


def test_no_rotation_and_no_shift_is_the_clean_image():
    attack = Spatial(threat=Rigid(degrees=0, shift=0), tries=2)
    clean = images()
    assert torch.allclose(attack(Corner(), clean, torch.zeros(6).long(), INDEX), clean, rtol=0, atol=1e-12)


def test_an_empty_batch_and_a_description():
    attack = Spatial()
    none = torch.zeros(0, dtype=torch.int64)
    assert attack(Corner(), images()[:0], none, none).shape == (0, 3, 8, 8)
    described = json.loads(json.dumps(attack.describe()))
    assert described["norm"] == "rigid"
    assert described["epsilon"] == "30 degrees, 3/32 of the side"
    assert described["steps"] == 775
    assert described["poses"] == "grid of 31 x 5 x 5"
    assert Spatial(tries=10).describe()["poses"] == "random"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rigid(degrees=-1), r"degrees must be in \[0, 180\], got -1"),
        (lambda: Rigid(shift=3), "shift is a share of the side, at most 1, got 3"),
        (lambda: Rigid(shift="x"), "shift must be a number"),
        (lambda: Spatial(angles=0), "angles must be >= 1, got 0"),
        (lambda: Spatial(shifts=0), "shifts must be >= 1, got 0"),
        (lambda: Spatial(tries=0), "tries must be >= 1, got 0"),
        (lambda: Spatial(restarts=2), "restarts of a grid"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
