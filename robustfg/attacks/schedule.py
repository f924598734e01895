"""How step lengths shrink."""

import math


def cosine(taken: int, steps: int) -> float:
    """Share of the first step's length after ``taken`` of ``steps``: from 1 along half a cosine wave towards 0."""
    return (1 + math.cos(math.pi * taken / steps)) / 2
