"""Masks and points follow the image through resizing and cropping."""

import numpy as np
import pytest
import torch

from robustfg.data.samples import FitSquare

FITS = {
    "enlarged and cropped": {"size": 96, "crop_ratio": 0.75},
    "reduced and cropped": {"size": 24, "crop_ratio": 0.875},
    "kept whole": {"size": 40},
    "stretched": {"size": 50, "keep_aspect": False},
}
SHAPES = [(61, 43), (43, 61), (48, 90), (40, 40), (37, 38)]


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_painted_square_and_its_mask_and_centre_end_up_in_the_same_place(options, shape):
    fit, (height, width) = FitSquare(**options), shape
    for top, left in [(height // 2 - 6, width // 2 - 3), (height // 2 - 1, width // 2 - 9)]:
        image, mask = np.zeros((3, height, width), np.uint8), np.zeros(shape, bool)
        image[:, top : top + 9, left : left + 7] = 255
        mask[top : top + 9, left : left + 7] = True
        fitted = fit(torch.from_numpy(image))[0].numpy().astype(float)
        moved = fit.mask(mask)
        assert moved.any()
        assert np.array_equal(moved, fitted > 127)
        rows, columns = np.mgrid[: fit.size, : fit.size]
        centroid = [(fitted * where).sum() / fitted.sum() for where in (columns, rows)]
        (point,) = fit.points(np.array([[left + 3.0, top + 4.0]]), height, width)
        assert np.allclose(point, centroid, atol=0.1)


def test_a_point_that_is_cropped_away_lies_outside():
    fit = FitSquare(size=20)
    inside, outside = fit.points(np.array([[40.0, 10.0], [3.0, 10.0]]), 20, 80)
    assert inside.tolist() == [10.0, 10.0]
    assert outside[0] < 0


def test_what_already_fits_is_left_as_it_is():
    fit, points = FitSquare(size=20, crop_ratio=0.8), np.array([[3.0, 4.5]])
    assert fit.points(points, 20, 20).tolist() == points.tolist()
    mask = np.random.default_rng(0).random((20, 20)) > 0.5
    assert np.array_equal(fit.mask(mask), mask)
