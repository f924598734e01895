import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from robustfg.attacks import L1, L2, Linf
from robustfg.attacks.detector_aware.orthogonal import best_in_box, orthogonal_step, without_part_along
from robustfg.core.errors import UserError

WHOLE = st.integers(-3, 3).map(float)  # zeros, ties and parallel vectors are frequent
NUMBERS = WHOLE | st.integers(-3000, 3000).map(lambda thousandths: thousandths / 1000)
SIZE = st.integers(1, 6)
SIDE = st.sampled_from([0.0, 0.25, 1.0])


@st.composite
def programs(draw, count=SIZE):
    size = draw(count)
    rows = [draw(st.lists(values, min_size=size, max_size=size)) for values in (NUMBERS, NUMBERS, SIDE, SIDE)]
    gradient, normal, low, high = torch.tensor(rows, dtype=torch.float64)
    return gradient, normal, -low, high


@settings(deadline=None, max_examples=200)
@given(program=programs())
def test_the_step_is_the_linear_programs(program):
    gradient, normal, low, high = program
    step = best_in_box(*(part[None] for part in program))[0]
    assert ((step >= low) & (step <= high)).all()
    assert (normal @ step).abs() <= 1e-12 * max(1.0, normal.abs().sum())
    solved = linprog(
        -gradient.numpy(), A_eq=normal[None].numpy(), b_eq=np.zeros(1), bounds=np.stack([low, high], 1), method="highs"
    )
    assert solved.status == 0
    assert (gradient @ step).item() == pytest.approx(-solved.fun, abs=1e-6)


@settings(deadline=None, max_examples=100)
@given(programs=st.lists(programs(count=st.just(4)), min_size=2, max_size=4))
def test_every_row_is_solved_by_itself(programs):
    together = best_in_box(*(torch.stack(parts) for parts in zip(*programs, strict=True)))
    for row, program in zip(together, programs, strict=True):
        assert torch.equal(row, best_in_box(*(part[None] for part in program))[0])


@settings(deadline=None, max_examples=100)
@given(program=programs(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_what_is_left_of_a_gradient_is_orthogonal_and_the_nearest_such(program, dtype):
    gradient, normal = (part.to(dtype).view(1, 1, 1, -1) for part in program[:2])
    rest = without_part_along(gradient, normal)
    a, b = gradient.double().flatten(), normal.double().flatten()
    expected = a - (a @ b) / (b @ b) * b if b.any() else a
    tolerance = 20 * torch.finfo(dtype).eps
    assert torch.allclose(rest.double().flatten(), expected, rtol=0, atol=tolerance * a.norm().item() + 1e-300)
    assert (rest.double().flatten() @ b).abs() <= tolerance * a.norm() * b.norm()


FACTOR = st.floats(-5, 5).filter(lambda factor: factor == 0 or abs(factor) > 1e-30)
"""Below, products are rounded to multiples of the smallest number and are parallel to nothing."""


@settings(deadline=None, max_examples=60)
@given(factor=FACTOR, seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_parallel_gradients_leave_no_step_in_l2(factor, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(2, 3, 4, 4, generator=generator, dtype=dtype)
    clean = torch.rand(2, 3, 4, 4, generator=generator, dtype=dtype)
    moved = orthogonal_step(L2(epsilon=0.5), clean, clean, factor * normal, normal, 0.1)
    assert torch.equal(moved, clean)
    assert without_part_along(factor * normal, normal).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_linf_the_step_stays_in_ball_and_box_and_orthogonal_where_a_projected_sign_does_not(dtype):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(5, 3, 8, 8, generator=generator, dtype=dtype).mul(1.2).sub(0.1).clamp(0, 1)
    threat, length = Linf(epsilon=0.05), 0.03
    current = threat.project(clean + 0.05 * torch.randn(clean.shape, generator=generator, dtype=dtype), clean)
    gradient, normal = (torch.randn(clean.shape, generator=generator, dtype=dtype) for _ in range(2))
    moved = orthogonal_step(threat, current, clean, gradient, normal, length)
    threat.check(moved, clean)
    step = (moved - current).double()
    assert (step.abs() <= length + 1e-6).all()
    signed = threat.project(current + length * without_part_along(gradient, normal).sign(), clean) - current
    off, off_signed = ((normal.double() * s.double()).sum((1, 2, 3)).abs() for s in (step, signed))
    assert (off < 1e-4).all()
    assert off_signed.mean() > 0.05
    assert ((gradient.double() * step).sum((1, 2, 3)) > 0.5 * (gradient * signed).sum((1, 2, 3))).all()


def test_in_l2_the_step_has_its_length_along_the_projected_gradient():
    generator = torch.Generator().manual_seed(0)
    clean = 0.4 + 0.2 * torch.rand(3, 3, 4, 4, generator=generator, dtype=torch.float64)
    gradient, normal = (torch.randn(clean.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    step = orthogonal_step(L2(epsilon=1.0), clean, clean, gradient, normal, 0.3) - clean
    for row in range(3):
        g, n = gradient[row].flatten(), normal[row].flatten()
        rest = g - (g @ n) / (n @ n) * n
        assert torch.allclose(step[row].flatten(), 0.3 * rest / rest.norm(), rtol=0, atol=1e-12)


def test_other_norms_are_refused():
    clean = torch.rand(1, 3, 4, 4)
    with pytest.raises(UserError, match="linf and l2 threats, got l1"):
        orthogonal_step(L1(epsilon=1.0), clean, clean, clean, clean, 0.1)
