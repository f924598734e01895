"""Square windows at random places of images, and the bump that Square writes into them."""

from functools import cache

import torch
from torch import Tensor


def window(size: int, height: int, width: int, place: Tensor) -> Tensor:
    """Flat positions of a window's pixels in every image; every row and column is reached.

    Args:
        size: side of the windows, at most ``height`` and ``width``.
        height: of the images.
        width: of the images.
        place: ``(B, 2)`` uniform numbers in [0, 1).

    Returns:
        ``(B, size * size)`` int64, row by row.
    """
    down, right = place.double().unbind(1)
    top, left = (down * (height - size + 1)).long(), (right * (width - size + 1)).long()
    side = torch.arange(size, device=place.device)
    inside = (side[:, None] * width + side).flatten()
    return (top * width + left)[:, None] + inside


def bump(height: int, width: int, decay: int) -> Tensor:
    """Square's profile of a rectangle, ``(height, width)`` float64: highest at its centre (2020, eq. 2).

    At Chebyshev distance d from the centre it is the sum of 1 / (1 + j)^decay over j = d ... n, where n is half the
    longer side; decay is 2 in the paper.
    """
    rows, columns = (torch.arange(side) - side // 2 for side in (height, width))
    distance = torch.maximum(rows.abs()[:, None], columns.abs())
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** decay
    return terms.flip(0).cumsum(0).flip(0)[distance]


@cache
def two_bumps(size: int, order: int, decay: int) -> Tensor:
    """A bump above a negative one, ``(size, size)`` float64 of norm 1: what Square adds to a window in l2 and l1."""
    both = -bump(size - size // 2, size, decay)
    both = both / torch.linalg.vector_norm(both, order)
    if size > 1:
        upper = bump(size // 2, size, decay)
        both = torch.cat([upper / torch.linalg.vector_norm(upper, order), both])
    normed: Tensor = both / torch.linalg.vector_norm(both, order)
    return normed
