"""The block ``detection`` of summary.json, from the rows and the calibration scores alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustfg.detectors.threshold import rejected_of
from robustfg.evaluation.detection.operating import Values, expected_rate, thresholds
from robustfg.evaluation.detection.ranking import detected, ranking
from robustfg.evaluation.detection.readings import Images, Readings
from robustfg.evaluation.detection.redraws import DRAWS, interval, redraws
from robustfg.evaluation.detection.rejection import by_size, forced
from robustfg.evaluation.detection.standing import Standing
from robustfg.evaluation.detection.thresholded import DEFINITIONS
from robustfg.evaluation.statistics import counted, wilson

TOLD = (0.01, 0.05)
"""False-positive rates at which the share of found anomalies is told."""


@dataclass(frozen=True)
class Attackers:
    """Who attacked one detector, by threat model."""

    joint: Mapping[str, Sequence[str]]
    """Attacks whose successes count in the joint accuracy: of the white box all, since it could run the others too."""
    own: Mapping[str, Sequence[str]]
    """Attacks whose images are ranked: the threat model's own."""
    ignoring: str
    """The threat model that does not aim at the detector."""
    forced: Sequence[str]
    """Attacks for the rejection of right images."""
    radius: Mapping[str, float]
    """The largest perturbation that each attack allows."""


class DetectorSummary:
    """The numbers of one detector.

    Args:
        readings: its scores on the test samples.
        calibration: ``(n,)`` its scores on right clean samples of the calibration split.
        attackers: who attacked.
        fpr: the headline false-positive rate.
        levels: all rates of the curve.
        seed: of the bootstrap, which redraws test samples by class and the calibration split.
    """

    def __init__(
        self, readings: Readings, calibration: Values, attackers: Attackers, *, fpr: float, levels: Sequence[float],
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.readings, self.calibration, self.attackers = readings, calibration, attackers
        self.fpr, self.levels = fpr, levels
        generator = np.random.default_rng(seed)
        self.test = redraws(readings.label, DRAWS, generator)
        self.redrawn = redraws(np.zeros(len(calibration), np.int64), DRAWS, generator)
        self.tau = self._tau(fpr)

    def _tau(self, fpr: float) -> float:
        return float(thresholds(self.calibration, np.ones((1, len(self.calibration)), np.int64), fpr)[0])

    def standing(self, threat: str) -> Standing:
        """Where the samples stand in a threat model."""
        return self.readings.standing(self.attackers.joint[threat])

    def claim(self, threat: str) -> dict[str, Any]:
        """The joint robust accuracy at the headline threshold in a threat model."""
        return self._joint(self.standing(threat), self.tau)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, as they stand in ``summary.json`` under ``detection.detectors.<name>``.

        - ``tau``: the headline threshold. ``fpr``: the rate asked for, what it is calibrated on, where the true rate
          lies with 95 % (``expected95``), and the one realised on right clean test images with its Wilson interval.
        - ``threats``, by threat model: ``joint``, the joint robust accuracy at ``tau`` with its Wilson interval, an
          interval that redraws test and calibration samples, and how many clean images are right and ``accepted``;
          ``curve``, the same from rate 0, which is no detector, over all rates but those in ``left_out``, for which
          there are too few calibration samples; ``ranking`` of the ``successful``, of ``all`` attacked images and of
          the ``worst_case`` of every sample against the right clean images; ``thresholded_error`` by definition.
        - ``forced_rejection`` and ``rejection_by_size``, see ``rejection``; over all attackers.
        """
        everyone = [name for names in self.attackers.own.values() for name in names] + list(self.attackers.forced)
        images = self._images(everyone, joint=True)
        return {
            "tau": self.tau,
            "fpr": self._rates(),
            "threats": {threat: self._threat(threat) for threat in self.attackers.joint},
            "forced_rejection": forced(self.readings, images, self.tau) | {"aimed": bool(self.attackers.forced)},
            "rejection_by_size": by_size(self.readings, images, self.tau),
        }

    def _images(self, names: Sequence[str], *, joint: bool) -> Images:
        return self.readings.images(names, self.attackers.radius, joint=joint)

    def _rates(self) -> dict[str, Any]:
        clean, n = self.readings.clean[self.readings.right], len(self.calibration)
        rejected = int((clean > self.tau).sum())
        return {
            "asked": self.fpr,
            "calibration": n,
            "calibration_rejected": rejected_of(n, self.fpr),
            "expected95": expected_rate(n, self.fpr),
            "rejected": rejected,
            "n": len(clean),
            "realised": rejected / len(clean) if len(clean) else None,
            "ci95": [round(end, 4) for end in wilson(rejected, len(clean))],
        }

    def _threat(self, threat: str) -> dict[str, Any]:
        standing = self.standing(threat)
        images = self._images(self.attackers.own[threat], joint=threat != self.attackers.ignoring)
        sets = {"successful": images.some(images.wrong), "all": images, "worst_case": images.worst()}
        curve = [self._joint(standing, np.inf) | {"fpr": 0.0}]
        possible = [level for level in self.levels if rejected_of(len(self.calibration), level)]
        curve += [self._joint(standing, self._tau(level)) | {"fpr": level} for level in possible]
        return {
            "attacks": list(self.attackers.own[threat]),
            "joint": self._joint(standing, self.tau) | {"ci95_redrawn": self._joint_interval(standing)},
            "curve": curve,
            "left_out": [level for level in self.levels if level not in possible],
            "ranking": {name: self._ranking(chosen) for name, chosen in sets.items()},
            "thresholded_error": {name: rule(standing, self.calibration) for name, rule in DEFINITIONS.items()},
        }

    def _joint(self, standing: Standing, tau: float) -> dict[str, Any]:
        robust, accepted = standing.robust(tau), standing.accepted(tau)
        told = counted(int(robust.sum()), len(robust))
        return {"tau": tau if np.isfinite(tau) else None, **told, "accepted": int(accepted.sum())}

    def _joint_interval(self, standing: Standing) -> list[float] | None:
        # Searches ended at the lowest threshold that is told: below it, what they reached above counts as well.
        lowest = min(self._tau(level) for level in (self.fpr, *self.levels))
        redrawn = thresholds(self.calibration, self.redrawn, self.fpr)
        robust = standing.robust(redrawn) & standing.robust(np.maximum(redrawn, lowest))
        return interval((robust * self.test).sum(1) / len(self.readings.label))

    def _ranking(self, images: Images) -> dict[str, Any]:
        negative = self.readings.clean[self.readings.right]
        drawn = self.test[:, images.sample], self.test[:, self.readings.right]
        found, spread = ranking(images.score, negative), ranking(images.score, negative, drawn)
        told = {name: _told(found[name], spread[name]) for name in found}
        for fpr in TOLD:
            tau = np.array([self._tau(fpr)])
            redrawn = thresholds(self.calibration, self.redrawn, fpr)
            known = np.isfinite(tau[0])
            rates = detected(images.score, tau), detected(images.score, redrawn, drawn[0])
            told[f"tpr_at_{100 * fpr:g}_fpr"] = _told(*rates) if known else {"value": None, "ci95": None}
        return {"n": len(images.score), "negatives": len(negative), **told}


def _told(value: Values, redrawn: Values) -> dict[str, Any]:
    known = None if np.isnan(value[0]) else round(float(value[0]), 6)
    return {"value": known, "ci95": None if known is None else interval(redrawn)}
