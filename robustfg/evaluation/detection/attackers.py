"""The attackers of one detector, from the one who ignores it to the one who knows it."""

from collections.abc import Mapping

from robustfg.attacks import Attack, Threat, black_box, white_box
from robustfg.attacks.detector_aware.suites import apgd_in
from robustfg.attacks.objectives.acceptance import ScoreOf
from robustfg.attacks.objectives.joint import Accepted
from robustfg.evaluation.detection.calibration import Calibration
from robustfg.evaluation.detection.denial import denial
from robustfg.evaluation.detection.options import Detection
from robustfg.evaluation.unknown import pushed

SEMI_WHITE_BOX, BLACK_BOX, WHITE_BOX, FORCED = "semi_white_box", "black_box", "white_box", "forced_rejection"
"""Threat models; the last wants rejection instead of a wrong class."""


def joint_attacks(
    detection: Detection, detector: str, threat: Threat, calibration: Calibration, *, tau: float, lowest: float
) -> dict[str, dict[str, Attack]]:
    """Attacks on classifier and detector together, by threat model and name, such as ``white_box/energy/max_form``.

    Args:
        detection: the options.
        detector: its name.
        threat: the allowed images.
        calibration: its scores and the features of accepted images.
        tau: the headline threshold.
        lowest: the lowest threshold that is told; searches go on down to it.
    """
    scale = scale_of(calibration, detector, tau)
    surrogates = {} if detection.surrogate is None else {"surrogate": detection.surrogate}
    found: dict[str, Mapping[str, Attack]] = {}
    if detection.black_box:
        found[BLACK_BOX] = black_box(
            detector, threat=threat, tau=tau, scale=scale, lowest=lowest, surrogates=surrogates,
            queries=detection.queries, seed=detection.seed,
        )  # fmt: skip
    if detection.white_box:
        found[WHITE_BOX] = white_box(
            detector, threat=threat, tau=tau, scale=scale, lowest=lowest,
            distances=detector in calibration.distances, bank=calibration.bank(detector, tau), steps=detection.steps,
            restarts=detection.restarts, seed=detection.seed,
        )  # fmt: skip
    if detection.forced_rejection:
        attack = denial(
            detector, threat, tau=tau, scale=scale, steps=detection.steps, restarts=detection.restarts,
            seed=detection.seed,
        )  # fmt: skip
        found[FORCED] = {attack.name: attack}
    return {model: dict(attacks) for model, attacks in found.items()}


def push(
    detection: Detection, detector: str, threat: Threat, calibration: Calibration, *, tau: float, lowest: float
) -> Attack:
    """APGD on the score alone, whatever the class, until the image is accepted at ``lowest``.

    Arguments as for ``joint_attacks``.
    """
    climb = apgd_in(threat, detection.steps, detection.restarts, detection.seed)
    accepted = Accepted(score=ScoreOf(detector), tau=lowest, scale=scale_of(calibration, detector, tau))
    return pushed(climb, accepted, detector)


def scale_of(calibration: Calibration, detector: str, tau: float) -> float:
    """The unit of the score: the threshold of a head of distances where positive, else the clean scores' deviation."""
    if detector in calibration.distances and tau > 0:
        return tau
    deviation = float(calibration.scores[detector].double().std(unbiased=False))
    return deviation if deviation > 0 else 1.0
