"""Checks of a detection claim; each can fail."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from robustfg.detectors.threshold import rejected_of
from robustfg.evaluation.checks.base import EXCLUDED, TOLERATED, Check, Status, counted_check
from robustfg.evaluation.checks.judge import CURVED, MUCH_CURVED
from robustfg.evaluation.detection.operating import Values, expected_rate, surprise
from robustfg.evaluation.detection.probes import DIFFERENCE, GRADIENT
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.records import column
from robustfg.evaluation.statistics import exceeds, upper_limit

SURPRISING = 0.01
"""p-value under which the realised false-positive rate does not fit the calibrated one."""
LEAST_STEPS = 30
"""Steps of every white-box attack under which its failures say nothing."""
NO_CLAIM = "no claim: no white-box attack was run"


def detector_graph(table: pa.Table, detector: str) -> Check:
    """Whether the score can be attacked by its gradient (probes)."""
    names, detail = (
        column(table, "attack"),
        "the score has a gradient that tells how it changes",
    )
    alive, told = (column(table, "correct").astype(bool)[names == kind + detector] for kind in (GRADIENT, DIFFERENCE))
    dead, n = int((~alive).sum()), len(alive)
    if exceeds(dead, n, TOLERATED):
        return Check("detector_graph", "fail", dead, n, detail)
    mistaken = int((~told).sum())
    if exceeds(mistaken, n, CURVED):
        return Check("detector_graph", "inconclusive", mistaken, n, detail)
    return counted_check("detector_graph", mistaken, n, detail, rate=CURVED, excluded=MUCH_CURVED)


def adaptive_dominates(readings: Readings, white_box: Sequence[str], weaker: Sequence[str], tau: float) -> Check:
    """Whether the attackers who know less pass with no sample with which the one who knows all does not."""
    detail = "who ignores the detector or knows only answers passes with no sample that withstands the white box"
    if not white_box:
        return Check("adaptive_dominates", "inconclusive", 0, 0, detail + ": no white-box attack was run")
    base = readings.standing(white_box)
    missed = base.robust(tau) & ~readings.standing(weaker).robust(tau)
    count, n = int(missed.sum()), int(base.accepted(tau).sum())
    return counted_check("adaptive_dominates", count, n, detail, everything=True)


def joint_reference(readings: Readings, tried: Sequence[str], references: Sequence[str], tau: float) -> Check:
    """Whether attacks with settings of their own, on a few samples, pass with no sample that withstood all others."""
    detail = "attacks on both whose settings are fixed pass with no sample that withstood all others"
    base, checked = readings.standing(tried), readings.standing(references)
    probed = base.accepted(tau) & ~np.isnan(checked.handed)
    missed, n = int((probed & base.robust(tau) & ~checked.robust(tau)).sum()), int(probed.sum())
    return counted_check("joint_reference", missed, n, detail, everything=n == int(base.accepted(tau).sum()))


def effort(steps: int) -> Check:
    """Whether the white box was given enough steps for its failures to count."""
    detail = f"every white-box attack may take {LEAST_STEPS} steps: evaluation.detection.steps"
    return Check("effort", "pass" if steps >= LEAST_STEPS else "fail", max(0, LEAST_STEPS - steps), LEAST_STEPS, detail)


def detector_hygiene(contents: Mapping[str, Mapping[int, bytes]], keys: Mapping[str, Mapping[int, str]]) -> Check:
    """Whether the images that detectors are fitted on, calibrated on and tested on are different ones.

    Data sets hold a few pictures twice under different names; what is tolerated is a share of every split. No name may
    be in two splits.

    Args:
        contents: digests of the images by split and id; the count is of digests that several splits hold.
        keys: names of the images by split and id.
    """
    places: dict[bytes, dict[str, str]] = {}
    for split, digests in contents.items():
        for index, digest in digests.items():
            places.setdefault(digest, {}).setdefault(split, keys[split][index])
    shared = [names for names in places.values() if len(names) > 1]
    detail = "no image is in two of the splits that detectors are fitted, calibrated and tested on"
    if shared:
        detail += ", but " + " and ".join(f"{name} ({split})" for split, name in shared[0].items())
    leaked = {split: sum(len(places[digest]) > 1 for digest in digests.values()) for split, digests in contents.items()}
    names = [keys[split][index] for split, digests in contents.items() for index in digests]
    status: Status = "pass"
    if len(set(names)) < len(names):
        status, detail = "inconclusive", detail + ": a name is in two of them"
    if len(contents) < 2 or not all(contents.values()):
        status, detail = "inconclusive", detail + ": one of them has no image"
    if any(exceeds(count, len(contents[split]), TOLERATED) for split, count in leaked.items()):
        status = "fail"
    return Check("detector_hygiene", status, len(shared), len(places), detail)


def realised_fpr(clean: Values, tau: float, calibration: Values, fpr: float) -> Check:
    """Whether as many right clean test images are rejected as the threshold from the calibration scores leads to.

    Args:
        clean: scores of the right clean test images.
        tau: the threshold.
        calibration: the scores it comes from.
        fpr: the rate that was asked for.
    """
    rejected, m, n = int((clean > tau).sum()), len(clean), len(calibration)
    law, tied = expected_rate(n, fpr), (calibration > tau).sum() < rejected_of(n, fpr)
    if law is None or not m:
        return Check("realised_fpr", "inconclusive", rejected, m, "too few samples to tell the false-positive rate")
    detail = f"right clean images are rejected at the calibrated rate, {100 * law[0]:.1f} to {100 * law[1]:.1f} %"
    if surprise(rejected, m, n, fpr, tied=bool(tied)) < SURPRISING:
        return Check("realised_fpr", "fail", rejected, m, detail)
    limit = upper_limit(rejected, m)
    if limit > law[1] + EXCLUDED:
        power = f": {rejected} of {m} cannot exclude a rate of {100 * limit:.1f} % (95 %)"
        return Check("realised_fpr", "inconclusive", rejected, m, detail + power)
    return Check("realised_fpr", "pass", rejected, m, detail)


def half_epsilon(lower: float, known: float | None, n: int) -> Check:
    """Whether the claim is within what classifiers without a detector reach at half the radius.

    Args:
        lower: lower end of the interval of the claimed joint robust accuracy.
        known: the best accuracy known there; None where none is.
        n: number of test samples.
    """
    detail = "the claim does not exceed the best accuracy known without a detector at half the radius"
    if known is None:
        return Check(
            "half_epsilon", "inconclusive", 0, 0, detail + ", and none is known: evaluation.detection.half_epsilon"
        )
    above = max(0.0, lower - known)
    return Check(
        "half_epsilon", "fail" if above > 0 else "pass", round(above * n), n, f"{detail} ({100 * known:.1f} %)"
    )


def detector_verdict(checks: Sequence[Check], classifier: str, *, white_box: bool) -> str:
    """What the claim of one detector is worth.

    Args:
        checks: of this detector; none where none was run.
        classifier: the verdict on the evaluation without detectors, which it cannot exceed.
        white_box: whether the white box was run.

    Returns:
        ``invalid``, ``no claim: …``, ``upper bound, unverified`` or ``verified``. Where nothing is known at half the
        radius, ``half_epsilon`` is no obstacle.
    """
    status = {check.name: check.status for check in checks}
    if classifier == "invalid" or status.get("detector_hygiene") == "fail":
        return "invalid"
    if not white_box:
        return NO_CLAIM
    told = [value for name, value in status.items() if (name, value) != ("half_epsilon", "inconclusive")]
    return "verified" if classifier == "verified" and told and set(told) == {"pass"} else "upper bound, unverified"


def united(checks: Mapping[str, Sequence[Check]]) -> list[Check]:
    """The checks of all detectors as one of each name: the worst status, the counts of those that have it."""
    order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
    names = dict.fromkeys(check.name for found in checks.values() for check in found)
    together = []
    for name in names:
        of = {detector: check for detector, found in checks.items() for check in found if check.name == name}
        worst = next(status for status in order if any(check.status == status for check in of.values()))
        such = {detector: check for detector, check in of.items() if check.status == worst}
        first = next(iter(such.values()))
        who = "" if worst == "pass" or len(of) == 1 else f" ({', '.join(such)})"
        together.append(Check(name, worst, first.count, first.n, first.detail + who))
    return together
