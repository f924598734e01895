import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from robustfg.attacks import L1, L2, Linf
from robustfg.attacks.minimum_norm.hyperplane import change_to_plane, dual_norm, require_plane_norm
from robustfg.core.errors import UserError

THREATS = {"linf": Linf(epsilon=1), "l2": L2(epsilon=1000), "l1": L1(epsilon=1000)}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
NORMS = pytest.mark.parametrize("norm", THREATS)
PIXELS = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 0.5]))
WEIGHTS = st.one_of(st.floats(-3, 3, width=16), st.sampled_from([0.0, 1.0, -1.0]))
PROBLEMS = st.integers(1, 7).flatmap(
    lambda size: st.tuples(
        st.lists(PIXELS, min_size=size, max_size=size),
        st.lists(WEIGHTS, min_size=size, max_size=size),
        st.floats(-1.5, 1.5),
    )
)


def change(norm, image, normal, gap):
    """For one image given as a flat array."""
    image, normal = (torch.tensor(np.array(part), dtype=torch.float64).view(1, -1, 1, 1) for part in (image, normal))
    return change_to_plane(THREATS[norm], image, normal, torch.tensor([gap], dtype=torch.float64)).flatten().numpy()


def reach(image, normal, gap):
    """The part of the gap that the box allows, and the corner that goes the farthest."""
    corner = np.where(np.sign(gap) * normal > 0, 1.0, np.where(np.sign(gap) * normal < 0, 0.0, image)) - image
    most = abs(normal @ corner)
    return np.sign(gap) * min(abs(gap), most), corner


def least(norm, image, normal, gap):
    """The smallest norm, by a linear or a quadratic program."""
    size = len(image)
    bounds = list(zip(-image, 1 - image, strict=True))
    if norm == "l2":
        found = minimize(
            lambda d: d @ d / 2, np.zeros(size), jac=lambda d: d, bounds=bounds, method="SLSQP",
            constraints={"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return np.linalg.norm(found.x)
    one, zero = np.eye(size), np.zeros((size, size))
    if norm == "l1":  # d = up - down, the sum of both is minimised
        cost, equal = np.ones(2 * size), np.concatenate([normal, -normal])[None]
        limits = [(0, 1 - value) for value in image] + [(0, value) for value in image]
        return linprog(cost, A_eq=equal, b_eq=[gap], bounds=limits).fun
    column = -np.ones((size, 1))
    below = np.block([[one, column], [-one, column]])  # |d| <= t
    return linprog(
        np.append(zero[0], 1), A_ub=below, b_ub=np.zeros(2 * size), A_eq=np.append(normal, 0)[None], b_eq=[gap],
        bounds=[*bounds, (0, None)],
    ).fun  # fmt: skip


@NORMS
@settings(max_examples=60, deadline=None)
@given(problem=PROBLEMS)
def test_the_change_reaches_the_plane_or_as_far_as_the_box_allows(norm, problem):
    image, normal, gap = np.array(problem[0]), np.array(problem[1]), problem[2]
    found = change(norm, image, normal, gap)
    reached, corner = reach(image, normal, gap)
    assert normal @ found == pytest.approx(reached, abs=1e-9)
    assert ((image + found >= -1e-12) & (image + found <= 1 + 1e-12)).all()
    if abs(gap) > abs(reached) + 1e-9:
        assert np.allclose(found, corner, atol=1e-9)


@NORMS
@settings(max_examples=60, deadline=None)
@given(problem=PROBLEMS)
def test_no_shorter_change_reaches_the_plane(norm, problem):
    image, normal = np.array(problem[0]), np.array(problem[1])
    gap = 0.98 * reach(image, normal, problem[2])[0]  # certainly attainable
    if abs(gap) < 1e-3:
        return
    found = np.linalg.norm(change(norm, image, normal, gap), ORDERS[norm])
    assert found == pytest.approx(least(norm, image, normal, gap), rel=1e-4, abs=1e-6)


@NORMS
def test_samples_of_a_batch_do_not_mix(norm):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    normal = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    gap = torch.tensor([0.3, -2.0, 0.0, 500.0, -1e-9], dtype=torch.float64)
    together = change_to_plane(THREATS[norm], image, normal, gap)
    for sample in range(5):
        one = slice(sample, sample + 1)
        assert torch.equal(together[one], change_to_plane(THREATS[norm], image[one], normal[one], gap[one]))


@NORMS
def test_inside_the_box_the_length_is_the_gap_over_the_dual_norm(norm):
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64)
    image, gap = torch.full_like(normal, 0.5), torch.tensor([0.1, -0.2, 0.3, -0.4], dtype=torch.float64)
    found = THREATS[norm].size(change_to_plane(THREATS[norm], image, normal, gap))
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    expected = gap.abs() / torch.linalg.vector_norm(normal.flatten(1), dual, dim=1)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(dual_norm(THREATS[norm], normal), gap.abs() / expected, rtol=1e-12)


@NORMS
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e200])
def test_gradients_of_any_size_give_the_same_change(norm, scale):
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    normal = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    gap = torch.tensor([0.5, -1.0], dtype=torch.float64)
    expected = change_to_plane(THREATS[norm], image, normal, gap)
    assert torch.allclose(change_to_plane(THREATS[norm], image, normal * scale, gap * scale), expected, rtol=1e-9)


@NORMS
@pytest.mark.parametrize("gap", [0.0, 1.0, -1.0])
def test_without_a_gradient_nothing_moves(norm, gap):
    assert (change(norm, [0.0, 0.3, 1.0], [0.0, 0.0, 0.0], gap) == 0).all()


@NORMS
def test_the_dtype_of_the_image_is_kept(norm):
    image = torch.rand(2, 1, 3, 3)
    assert change_to_plane(THREATS[norm], image, torch.randn_like(image), torch.ones(2)).dtype == torch.float32


def test_another_threat_is_refused_by_name():
    class Rotation:
        pass

    with pytest.raises(UserError, match="FAB needs an l-inf, l2 or l1 threat, got Rotation"):
        require_plane_norm(Rotation(), "FAB")
