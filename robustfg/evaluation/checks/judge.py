"""From rows and facts to checks, and from checks to the verdict."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from robustfg.attacks import Attack
from robustfg.evaluation.aggregation import correct_per_sample
from robustfg.evaluation.checks.base import Check, Status
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

TOLERATED = 0.01
"""Share of samples that may speak against an evaluation before a check fails; tested, not compared."""
CURVED = 0.2
"""The same for ``finite_difference``: where the margin bends, the gradient is right and predicts little."""
SATURATED = 17.0
"""Logit gap from which the true class's term of the float32 cross-entropy gradient is 0."""
INTEGRITY = {"budget", "eval_mode", "same_clean", "logits", "determinism"}
"""Checks whose failure makes the numbers meaningless instead of optimistic."""


@dataclass(frozen=True)
class Facts:
    """What the rows do not tell, summed over all processes."""

    modules_in_train_mode: int
    probability_outputs: int
    """Samples whose outputs were probabilities instead of logits."""
    test_correct: int | None
    """Correct samples as counted by the test loop itself; None where it ran in another precision."""


def judge(table: pa.Table, attacks: Mapping[str, Attack], facts: Facts) -> list[Check]:
    """All checks of an evaluation.

    Args:
        table: all rows, those of the probes included.
        attacks: the suite and the probes' attacks by name.
        facts: what the rows do not tell.
    """
    return [
        _budget(table, attacks),
        _status("eval_mode", facts.modules_in_train_mode, 1, "no module was in train mode", bool),
        _same_clean(table, facts),
        _status("logits", facts.probability_outputs, _size(table), "outputs are logits, not probabilities", bool),
        _probe(table, "determinism", DETERMINISM, "repeated forwards agree", TOLERATED),
        _dead_gradient(table),
        _saturation(table, attacks),
        _probe(table, "finite_difference", FINITE_DIFFERENCE, "the gradient predicts how the margin changes", CURVED),
        _one_step(table, attacks),
        _probe(table, "unbounded", UNBOUNDED, "epsilon 0.5 from the clean image breaks every sample", TOLERATED),
        _reference(table, attacks),
        _gradient_free(table, attacks),
    ]


def verdict(checks: Iterable[Check]) -> str:
    """``verified``, ``upper bound, unverified`` or ``invalid``."""
    statuses = {check.name: check.status for check in checks}
    if any(statuses.get(name) == "fail" for name in INTEGRITY):
        return "invalid"
    return "verified" if set(statuses.values()) == {"pass"} else "upper bound, unverified"


def _status(name: str, count: int, n: int, detail: str, fails: Callable[[int], bool]) -> Check:
    return Check(name, "fail" if fails(count) else "pass", count, n, detail)


def _size(table: pa.Table) -> int:
    return len(np.unique(column(table, "index")))


def _chosen(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.filter(np.isin(column(table, "attack"), names))


def _budget(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    outside = 0
    for name, attack in attacks.items():
        outside += int((column(_chosen(table, [name]), "norm") > attack.threat.radius + 1e-6).sum())
    return _status("budget", outside, table.num_rows, "every image stayed within epsilon and [0, 1] (float64)", bool)


def _same_clean(table: pa.Table, facts: Facts) -> Check:
    counted = int(correct_per_sample(_chosen(table, [CLEAN]), [CLEAN]).sum())
    detail = "the test loop and the evaluation count the same correct samples"
    if facts.test_correct is None:
        return Check("same_clean", "inconclusive", 0, _size(table), detail + ": the test loop ran in half precision")
    near = int(column(_chosen(table, [CLEAN]), "borderline").astype(bool).sum())  # decided alone here, in a batch there
    return _status("same_clean", abs(facts.test_correct - counted), _size(table), detail, lambda c: c > near)


def _probe(table: pa.Table, name: str, attack: str, detail: str, rate: float) -> Check:
    """A recorded probe: its rows are ``correct`` where the evaluation behaved, save that UNBOUNDED must break all."""
    rows = _chosen(table, [attack])
    behaved = column(rows, "correct").astype(bool)
    count, n = int((behaved if attack == UNBOUNDED else ~behaved).sum()), rows.num_rows
    status: Status = "inconclusive" if n == 0 else "fail" if exceeds(count, n, rate) else "pass"
    return Check(name, status, count, n, detail)


def _dead_gradient(table: pa.Table) -> Check:
    rows = table.filter(column(table, "backwards") > 0)
    dead = {
        name: column(_chosen(rows, [name]), "dead_gradient").astype(bool) for name in set(rows["attack"].to_pylist())
    }
    name = max(sorted(dead), key=lambda name: dead[name].mean(), default=None)
    if name is None:
        return Check("dead_gradient", "inconclusive", 0, 0, "no gradient was taken")
    count, n = int(dead[name].sum()), len(dead[name])
    return _status(
        "dead_gradient",
        count,
        n,
        f"first gradients of {name} are finite and not all zero",
        lambda c: exceeds(c, n, TOLERATED),
    )


def _saturation(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    margin = column(_chosen(table, [CLEAN]), "margin")
    count, n = int((margin > SATURATED).sum()), len(margin)
    only = {attack.describe().get("objective") for attack in _suite(attacks).values()} == {"cross_entropy"}
    detail = f"logit gaps under {SATURATED:g}, or an objective other than cross-entropy"
    return _status("saturation", count, n, detail, lambda c: only and exceeds(c, n, TOLERATED))


def _suite(attacks: Mapping[str, Attack]) -> dict[str, Attack]:
    return {name: attack for name, attack in attacks.items() if not name.startswith(PREFIX)}


def _one_step(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    """Samples that a one-step attack breaks and longer attacks of at least its radius do not."""
    suite = _suite(attacks)
    steps = {name: attack.describe().get("steps") for name, attack in suite.items()}
    detail, count, n = "no sample falls to one step and withstands many", 0, 0
    for name, attack in suite.items():
        longer = [
            other
            for other, rival in suite.items()
            if rival.threat.norm == attack.threat.norm
            and rival.threat.radius >= attack.threat.radius
            and steps[other] != 1
        ]
        if steps[name] == 1 and longer:
            n = _size(table)
            count += int((~correct_per_sample(table, [name]) & correct_per_sample(table, longer)).sum())
    single = [name for name in attacks if name.startswith(ONE_STEP)]
    samples = np.unique(column(_chosen(table, single), "index"))
    if not n and len(samples):  # the suite has no one-step attack: the probe's is compared with all of it
        rows = table.filter(np.isin(column(table, "index"), samples))
        count, n = _withstood_only(rows, [CLEAN, *suite], single), len(samples)
    if not n:
        return Check("one_step", "inconclusive", 0, 0, detail + ": no one-step attack was run")
    return _status("one_step", count, n, detail, lambda c: exceeds(c, n, TOLERATED))


def _reference(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    """Probe samples that withstand the suite and fall to the reference attacks."""
    names = [name for name in attacks if name.startswith(REFERENCE)]
    probe = _chosen(table, names)
    if probe.num_rows == 0:
        return Check("reference", "inconclusive", 0, 0, "no reference attack was run")
    samples = np.unique(column(probe, "index"))
    rows = table.filter(np.isin(column(table, "index"), samples))
    count = _withstood_only(rows, [CLEAN, *_suite(attacks)], names)
    detail = "APGD on two objectives breaks nothing that withstood the suite"
    return _status("reference", count, len(samples), detail, lambda c: exceeds(c, len(samples), TOLERATED))


def _withstood_only(rows: pa.Table, withstood: Sequence[str], broken: Sequence[str]) -> int:
    """How many samples are right under all of the first attacks and broken by one of the second."""
    return int((correct_per_sample(rows, withstood) & ~correct_per_sample(rows, broken)).sum())


def _gradient_free(table: pa.Table, attacks: Mapping[str, Attack]) -> Check:
    """Samples that fall to an attack without gradients and to none with them: a sign of masked gradients."""
    detail = "attacks without gradients break nothing that withstands those with them"
    names = [*_suite(attacks), *(name for name in attacks if name.startswith((REFERENCE, GRADIENT_FREE)))]
    rows, clean = _chosen(table, names), _chosen(table, [CLEAN])
    index, asked = column(rows, "index"), column(rows, "forwards") > 0
    wrong, free = ~column(rows, "correct").astype(bool) & asked, asked & (column(rows, "backwards") == 0)
    right = column(clean, "index")[column(clean, "correct").astype(bool)]
    tried = np.intersect1d(right, index[free])
    if not len(tried):
        return Check("gradient_free", "inconclusive", 0, 0, "no attack without gradients was run")
    count = len(np.setdiff1d(np.intersect1d(tried, index[wrong & free]), index[wrong & ~free]))
    return _status("gradient_free", count, len(tried), detail, lambda c: exceeds(c, len(tried), TOLERATED))
