"""What a check of the evaluation itself reports, and when a count is enough to pass it."""

from dataclasses import asdict, dataclass
from typing import Literal

from robustfg.evaluation.statistics import exceeds, upper_limit

Status = Literal["pass", "fail", "inconclusive"]

TOLERATED = 0.01
"""Share of samples that may speak against an evaluation before a check fails; tested, not compared."""
EXCLUDED = 0.1
"""Share of samples that a count must exclude at 95 % before a check passes: 0 of 29 do, 3 of 76."""
EXCLUDED_OF_ALL = 0.25
"""The same where all samples of the evaluated set were looked at, whose own share is known: 0 of 11 do. What the count
does not exclude is a failure of the attacks that shows on other images; of four images nothing is worth the word."""


@dataclass(frozen=True)
class Check:
    """A test of the evaluation that could have failed."""

    name: str
    status: Status
    count: int
    """Samples that speak against the evaluation."""
    n: int
    """Samples looked at."""
    detail: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def counted_check(
    name: str,
    count: int,
    n: int,
    detail: str,
    *,
    rate: float = TOLERATED,
    excluded: float = EXCLUDED,
    everything: bool = False,
) -> Check:
    """A check by the share of samples that speak against the evaluation.

    It fails where the count speaks against a true rate of at most ``rate``, and passes only where it has the power to:
    where it excludes a rate of ``excluded``. Otherwise it says which rates it cannot exclude.

    Args:
        name: of the check.
        count: samples that speak against the evaluation.
        n: samples looked at.
        detail: what holds where it passes.
        rate: what is tolerated.
        excluded: what must be excluded, at 95 %.
        everything: all samples were looked at that there are, so that ``EXCLUDED_OF_ALL`` is enough.
    """
    if exceeds(count, n, rate):
        return Check(name, "fail", count, n, detail)
    limit = upper_limit(count, n)
    if limit <= max(excluded, EXCLUDED_OF_ALL if everything else 0):
        return Check(name, "pass", count, n, detail)
    power = f"{count} of {n} cannot exclude a rate of {100 * limit:.1f} % (95 %)" if n else "no sample was looked at"
    return Check(name, "inconclusive", count, n, f"{detail}: {power}")
