"""At which thresholds each sample withstands the attacker: one run answers every false-positive rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """Of every sample, what decides whether classifier and detector together are right about it.

    A sample is robust at a threshold if its clean image is classified right and accepted and no attack found an image
    that is classified wrong and accepted. Accepted is what scores at most the threshold.
    """

    right: NDArray[np.bool_]
    """``(N,)``: the clean prediction is right."""
    clean: Values
    """``(N,)``: score of the clean image."""
    reached: Values
    """``(N,)``: the lowest score that any attack found at a wrong prediction; NaN where there was none."""
    handed: Values
    """``(N,)``: the lowest score of any attacked image, of whatever class; NaN where there was none."""

    def robust(self, tau: ArrayLike) -> NDArray[np.bool_]:
        """Whether each sample is robust, ``(..., N)`` for thresholds ``(...)``; +inf is no detector."""
        level = np.asarray(tau, float)[..., None]
        found: NDArray[np.bool_] = self.right & (self.clean <= level) & ~(self.reached <= level)
        return found

    def accepted(self, tau: ArrayLike) -> NDArray[np.bool_]:
        """Whether each clean image is right and accepted, ``(..., N)``: what an attacker who finds nothing leaves."""
        found: NDArray[np.bool_] = self.right & (self.clean <= np.asarray(tau, float)[..., None])
        return found
