import numpy as np
import pytest
import scipy.ndimage
import torch

from robustfg.core.errors import UserError
from robustfg.core.straight_through import straight_through
from robustfg.models.squeezers import BitDepth, MedianFilter


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_median_is_that_of_scipy(size):
    image = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.median_filter(image.numpy(), size=(1, 1, size, size), mode="mirror")
    np.testing.assert_array_equal(MedianFilter(size=size)(image).numpy(), expected)


def test_the_medians_gradient_is_that_of_finite_differences():
    image = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(MedianFilter(size=3), image)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_bits_are_rounded_and_differentiated_as_if_they_were_not(bits):
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    squeezed = BitDepth(bits=bits)(image)
    levels = 2**bits - 1
    torch.testing.assert_close(squeezed.detach() * levels, (image.detach() * levels).round(), rtol=0, atol=1e-4)
    assert len(squeezed.unique()) <= 2**bits
    (gradient,) = torch.autograd.grad((squeezed * 3).sum(), image)
    assert (gradient == 3).all()


def test_straight_through_is_the_answer_to_the_last_bit():
    answer, stand_in = torch.rand(100) * 1e-7, torch.rand(100, requires_grad=True)
    assert torch.equal(straight_through(answer, stand_in), answer)


def test_impossible_squeezers_are_refused():
    with pytest.raises(UserError, match="detector.bits must be in 1 to 8, got 0"):
        BitDepth(bits=0)
    with pytest.raises(UserError, match="detector.window must be >= 2, got 1"):
        MedianFilter(size=1)
