"""From rows and facts to checks, and from checks to the verdict."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robustfg.attacks import Attack
from robustfg.evaluation.aggregation import correct_per_sample
from robustfg.evaluation.checks.base import TOLERATED, Check, counted_check
from robustfg.evaluation.checks.probes import (
    DETERMINISM,
    FINITE_DIFFERENCE,
    GRADIENT_FREE,
    ONE_STEP,
    PREFIX,
    REFERENCE,
    UNBOUNDED,
)
from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.statistics import exceeds

CURVED, MUCH_CURVED = 0.2, 0.35
"""``TOLERATED`` and ``EXCLUDED`` of ``finite_difference``: where the margin bends, a right gradient predicts little."""
SATURATED = 17.0
"""Logit gap from which the true class's term of the float32 cross-entropy gradient is 0."""
INTEGRITY = {"budget", "eval_mode", "same_clean", "logits", "determinism", "split_hygiene"}
"""Checks whose failure makes the numbers meaningless instead of optimistic."""


Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """What the rows do not tell, summed over all processes."""

    modules_in_train_mode: int
    probability_outputs: int
    """Samples whose outputs were probabilities instead of logits."""
    test_correct: int | None
    """Correct samples as counted by the test loop itself; None where it ran in another precision."""
    embeddings_not_finite: int = 0
    """Samples whose embedding holds NaN or infinity."""
    hygiene: Check | None = None
    """Whether the samples are apart from those of the training; None where nothing is known of these."""


def judge(table: pa.Table, attacks: Mapping[str, Attack], facts: Facts) -> list[Check]:
    """All checks of an evaluation.

    Args:
        table: all rows, those of the probes included.
        attacks: the suite and the probes' attacks by name.
        facts: what the rows do not tell.
    """
    return [
        _budget(table, attacks),
        _strict("eval_mode", facts.modules_in_train_mode, 1, "no module was in train mode"),
        _same_clean(table, facts),
        _strict("logits", facts.probability_outputs, _size(table), "outputs are logits, not probabilities"),
        _determinism(table),
        _dead_gradient(table),
        _saturation(table, attacks),
        _finite_difference(table),
        _one_step(table, attacks),
        _unbounded(table),
        _reference(table, attacks),
        _gradient_free(table, attacks),
        *([facts.hygiene] if facts.hygiene else []),
    ]


def verdict(checks: Iterable[Check]) -> str:
    """``verified``, ``upper bound, unverified`` or ``invalid``."""
    found = list(checks)
    if any(check.name in INTEGRITY and check.status == "fail" for check in found):
        return "invalid"
    return "verified" if {check.status for check in found} == {"pass"} else "upper bound, unverified"


def _strict(name: str, count: int, n: int, detail: str) -> Check:
    """A check that one sample against it fails."""
    return Check(name, "fail" if count else "pass", count, n, detail)


def _size(table: pa.Table) -> int:
    return len(np.unique(column(table, "index")))


def _right(table: pa.Table) -> Ids:
    """Samples that are right when clean: what there is to attack."""
    clean = _chosen(table, [CLEAN])
    found: Ids = column(clean, "index")[column(clean, "correct").astype(bool)]
    return found


def _chosen(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.filter(np.isin(column(table, "attack"), names))


def _budget(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    outside = rows = 0
    for name, attack in attacks.items():
        size = column(_chosen(table, [name]), "norm")
        outside += int((~(size <= attack.threat.radius + 1e-6)).sum())  # NaN is outside
        rows += int((column(_chosen(table, [name]), "forwards") > 0).sum())
    detail = "every image stayed within epsilon and [0, 1] (float64)"
    if not rows:
        return Check("budget", "inconclusive", outside, 0, detail + ": no sample was attacked")
    return _strict("budget", outside, rows, detail)


def _same_clean(table: pa.Table, facts: Facts) -> Check:
    counted = int(correct_per_sample(_chosen(table, [CLEAN]), [CLEAN]).sum())
    detail = "the test loop and the evaluation count the same correct samples"
    if facts.test_correct is None:
        return Check("same_clean", "inconclusive", 0, _size(table), detail + ": the test loop ran in half precision")
    near = int(column(_chosen(table, [CLEAN]), "borderline").astype(bool).sum())  # decided alone here, in a batch there
    differing, n = abs(facts.test_correct - counted), _size(table)
    if differing > near:
        return Check("same_clean", "fail", differing, n, detail)
    if differing and exceeds(near, n, TOLERATED):
        return Check("same_clean", "inconclusive", differing, n, f"{detail}: {near} lie on the border of two classes")
    return Check("same_clean", "pass", differing, n, detail)


def _determinism(table: pa.Table) -> Check:
    agree = column(_chosen(table, [DETERMINISM]), "correct").astype(bool)
    whole = len(agree) == _size(table)
    detail = "answers agree: asked again, beside other images and with gradients"
    return counted_check("determinism", int((~agree).sum()), len(agree), detail, everything=whole)


def _finite_difference(table: pa.Table) -> Check:
    told, detail = (
        column(_chosen(table, [FINITE_DIFFERENCE]), "correct").astype(bool),
        "the gradient predicts how the margin changes",
    )
    return counted_check(
        "finite_difference", int((~told).sum()), len(told), detail, rate=CURVED, excluded=MUCH_CURVED,
    )  # fmt: skip


def _unbounded(table: pa.Table) -> Check:
    """Survivors among the samples that were right when clean."""
    rows, right = _chosen(table, [UNBOUNDED]), _right(table)
    attacked = np.isin(column(rows, "index"), right)
    withstood, n = int(column(rows, "correct").astype(bool)[attacked].sum()), int(attacked.sum())
    detail = "epsilon 0.5 from the clean image breaks every sample"
    return counted_check("unbounded", withstood, n, detail, everything=n == len(right))


def _dead_gradient(table: pa.Table) -> Check:
    rows = table.filter(column(table, "backwards") > 0)
    names, index, dead = (column(rows, name) for name in ("attack", "index", "dead_gradient"))
    found = {}
    for name in set(names.tolist()):
        samples = np.unique(index[names == name])
        found[name] = len(np.unique(index[(names == name) & dead.astype(bool)])), len(samples)
    name = max(sorted(found), key=lambda name: found[name][0] / found[name][1], default=None)
    if name is None:
        return Check("dead_gradient", "inconclusive", 0, 0, "no gradient was taken")
    count, n = found[name]
    if not count:  # of the attacks that agree, that with the most samples says most
        name, (count, n) = max(sorted(found.items()), key=lambda item: item[1][1])
    detail = f"first gradients of {name} are finite and not all zero"
    return counted_check("dead_gradient", count, n, detail, everything=n == len(_right(table)))


def _saturation(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    clean = _chosen(table, [CLEAN])
    margin = column(clean, "margin")[column(clean, "correct").astype(bool)]  # what there is to attack
    count, n = int((margin > SATURATED).sum()), len(margin)
    only = {attack.describe().get("objective") for attack in _suite(attacks).values()} == {"cross_entropy"}
    detail = f"logit gaps under {SATURATED:g}, or an objective other than cross-entropy"
    return (
        counted_check("saturation", count, n, detail, everything=True)
        if only
        else Check("saturation", "pass", count, n, detail)
    )


def _suite(attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    return {name: attack for name, attack in attacks.items() if not name.startswith(PREFIX)}


def _one_step(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    """Samples that a one-step attack breaks and longer attacks of at least its radius do not."""
    suite, right = _suite(attacks), _right(table)
    steps = {name: attack.describe().get("steps") for name, attack in suite.items()}
    detail = "no sample falls to one step and withstands many"
    if set(steps.values()) == {1}:
        return Check("one_step", "inconclusive", 0, 0, detail + ": every attack of the suite takes one step only")
    missed, n = np.zeros(_size(table), bool), 0
    for name, attack in suite.items():
        longer = [
            other
            for other, rival in suite.items()
            if rival.threat.norm == attack.threat.norm
            and rival.threat.radius >= attack.threat.radius
            and steps[other] != 1
        ]
        if steps[name] == 1 and longer:
            n = len(right)
            missed |= ~correct_per_sample(table, [name]) & correct_per_sample(table, longer)
    count = int(missed.sum())
    if not n:  # the suite has no one-step attack: the probe's is compared with all of it
        count, n = _missed(table, attacks, ONE_STEP)
    if not n:
        return Check("one_step", "inconclusive", 0, 0, detail + ": no one-step attack attacked a sample")
    return counted_check("one_step", count, n, detail, everything=n == len(right))


def _reference(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    """Probe samples that withstand the suite and fall to the reference attacks."""
    detail = "APGD on two objectives breaks nothing that withstood the suite"
    count, n = _missed(table, attacks, REFERENCE)
    if not n:
        return Check("reference", "inconclusive", 0, 0, detail + ": no reference attack attacked a sample")
    return counted_check("reference", count, n, detail, everything=n == len(_right(table)))


def _missed(table: pa.Table, attacks: Mapping[str, Attack], probes: str) -> tuple[int, int]:
    """How many samples withstand the suite and fall to the probes, and how many the probes attacked.

    Norm by norm: a large ball of another norm hides nothing.
    """
    right, suite = _right(table), _suite(attacks)
    missed, tried = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for norm in {attack.threat.norm for name, attack in attacks.items() if name.startswith(probes)}:
        own = [name for name, attack in suite.items() if attack.threat.norm == norm]
        names = [name for name, attack in attacks.items() if name.startswith(probes) and attack.threat.norm == norm]
        samples = np.intersect1d(right, column(_chosen(table, names), "index"))
        rows = table.filter(np.isin(column(table, "index"), samples))
        withstood = correct_per_sample(rows, [CLEAN, *own]) & ~correct_per_sample(rows, names)
        missed, tried = np.union1d(missed, samples[withstood]), np.union1d(tried, samples)
    return len(missed), len(tried)


def _gradient_free(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    """Samples that fall to an attack without gradients and to none with them: a sign of masked gradients."""
    detail = "attacks without gradients break nothing that withstands those with them"
    right = _right(table)
    found, tried = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for norm in {attack.threat.norm for attack in attacks.values()}:
        own = [name for name, attack in attacks.items() if attack.threat.norm == norm and _told(name)]
        rows = _chosen(table, own)
        names, index, restart = (column(rows, name) for name in ("attack", "index", "restart"))
        wrong, asked = ~column(rows, "correct").astype(bool), column(rows, "forwards") > 0
        _, number = np.unique(names, return_inverse=True)
        _, unit = np.unique(np.stack([number, restart]), axis=1, return_inverse=True)
        unit = unit.ravel()
        free = np.bincount(unit, column(rows, "backwards"))[unit] == 0  # over all samples: one may be lucky
        if bool((asked & ~free).any()):
            tried = np.union1d(tried, np.intersect1d(right, index[asked & free]))
            found = np.union1d(found, np.setdiff1d(index[wrong & asked & free], index[wrong & asked & ~free]))
    if not len(tried):
        return Check("gradient_free", "inconclusive", 0, 0, detail + ": no attack without gradients attacked a sample")
    count = len(np.intersect1d(tried, found))
    return counted_check("gradient_free", count, len(tried), detail, everything=len(tried) == len(right))


def _told(name: str) -> bool:
    """Whether an attack is of the suite, or of the probes that are compared with each other."""
    return not name.startswith(PREFIX) or name.startswith((REFERENCE, GRADIENT_FREE))
