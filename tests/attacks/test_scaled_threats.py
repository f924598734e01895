"""Threat models at a part of their strength, as training needs them that sets in slowly."""

import math

import pytest
import torch
from small import INDEX, images

from robustfg.attacks import L0, L1, L2, Frame, GradientAttack, Linf, Patch, Rigid, Spatial, Steepest
from robustfg.core.errors import UserError

LABEL = torch.zeros(6, dtype=torch.int64)


def sure(image):
    """Logits of a model that is right about class 0 whatever happens, and least so about dark images."""
    score = 1e3 + image.flatten(1).sum(1)
    return torch.stack([score, -score], 1)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("threat", [Linf(epsilon="8/255"), L2(epsilon=0.5), L1(epsilon=12, share=0.2)])
def test_a_balls_radius_is_multiplied_and_all_else_stays(threat, strength):
    scaled = threat.scaled(strength)
    assert scaled.radius == pytest.approx(strength * threat.radius, rel=1e-15)
    assert type(scaled) is type(threat)
    assert getattr(scaled, "share", 0.2) == 0.2
    assert scaled.size(torch.ones(1, 3, 4, 4)) == threat.size(torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize(("strength", "whole"), [(0.0, 0), (0.04, 0), (0.06, 1), (0.5, 5), (0.96, 10), (1.0, 10)])
@pytest.mark.parametrize("kind", [L0, Frame])
def test_numbers_of_pixels_are_rounded(kind, strength, whole):
    assert kind(epsilon=10).scaled(strength).radius == whole


@pytest.mark.parametrize("place", [None, (0.0, 1.0)])
@pytest.mark.parametrize("strength", [0.0, 0.03, 0.07, 0.3, 0.6, 1.0])
def test_a_patch_loses_area_down_to_nothing(place, strength):
    """Of 4 x 4 pixels; 0.03 of them are less than one."""
    clean, patch = images(6, 3, 8).clamp_min(0.1), Patch(epsilon="16/64", place=place).scaled(strength)
    found = GradientAttack(threat=patch, step=Steepest(size="eps"), steps=1)(sure, clean, LABEL, INDEX)
    side = math.isqrt(math.floor(strength * 16))
    assert (found != clean).any(1).flatten(1).sum(1).tolist() == [side**2] * 6
    assert (patch.size(found - clean) <= patch.radius + 1e-12).all()
    if place is not None:
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[:side, 8 - side :] = True
        assert torch.equal((found != clean).any(1), inside.expand(6, 8, 8))


def test_a_patch_that_is_too_small_at_full_strength_is_still_told():
    with pytest.raises(UserError, match="patch epsilon 0.01 is less than one pixel"):
        Patch(epsilon=0.01).scaled(1.0).placed(images(), INDEX)


def test_poses_lose_angle_and_shift():
    scaled = Rigid(degrees=40, shift="4/32").scaled(0.25)
    assert scaled.limits(torch.zeros(1, 3, 32, 64, dtype=torch.float64)).tolist() == [10, 1, 2]
    assert scaled.epsilon == "10 degrees, 0.03125 of the side"


def test_spatial_search_at_a_part_of_its_strength_looks_at_those_poses_only():
    clean, seen = images(6, 1, 8), []

    def noting(image):
        seen.append(image)
        return sure(image)

    for attack in (Spatial(angles=3, shifts=1, threat=Rigid(degrees=2, shift=0)),
                   Spatial(angles=3, shifts=1, threat=Rigid(degrees=8, shift=0).scaled(0.25))):  # fmt: skip
        list(attack.attempts(noting, clean, LABEL, INDEX))
    first, second = torch.stack(seen[: len(seen) // 2]), torch.stack(seen[len(seen) // 2 :])
    assert torch.equal(first, second)
    assert not torch.equal(first[0], clean)
