"""The confidence-thresholded robust error, in two definitions whose numbers cannot be compared."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustfg.evaluation.detection.operating import keeping
from robustfg.evaluation.detection.standing import Standing

KEPT = 0.99
"""Share of the right clean images that both papers keep."""


def ccat(standing: Standing, calibration: NDArray[np.float64]) -> dict[str, Any]:
    """CCAT (Stutz et al. 2020): the threshold keeps 99 % of the right clean images of a split of its own.

    Errors are samples whose clean image is wrong and accepted, or for which an attack found an image that is wrong and
    accepted; they are counted out of the samples of which any image, clean or attacked, is accepted.
    """
    tau = keeping(calibration, KEPT)
    clean, reached = standing.clean <= tau, standing.reached <= tau
    errors = (~standing.right & clean) | reached
    accepted = clean | reached | (standing.handed <= tau)
    return _rate(int(errors.sum()), int(accepted.sum()), tau)


def mcat_code(standing: Standing, calibration: NDArray[np.float64]) -> dict[str, Any]:
    """As the code of MCAT has it: the threshold keeps 99 % of the right clean images of the test samples themselves.

    Errors are attacks on right samples that end wrong and accepted; errors on clean images do not count, and all
    samples are counted, accepted or not. It is lower than CCAT's on the same images.
    """
    tau = keeping(standing.clean[standing.right], KEPT)
    return _rate(int((standing.right & (standing.reached <= tau)).sum()), len(standing.right), tau)


def _rate(errors: int, n: int, tau: float) -> dict[str, Any]:
    return {"errors": errors, "n": n, "error": errors / n if n else None, "tau": tau if np.isfinite(tau) else None}


DEFINITIONS: Mapping[str, Callable[[Standing, NDArray[np.float64]], dict[str, Any]]] = {
    "ccat": ccat,
    "mcat_code": mcat_code,
}
"""By the name that stands in the summary."""
